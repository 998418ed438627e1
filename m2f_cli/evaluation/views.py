"""Views: images of an evaluation with their segments, small enough for a page, and their journal views.jsonl.

    {"header": {"schema_version", "tasks", "categories"}}
    {"name", "number", "size", "thumbnail": {"size", "jpeg"}, "tasks": {task: comparison}}

A comparison holds the image's own figure, its annotated segments (`true`) and its predicted ones (`found`). Masks are
COCO run lengths of the thumbnail's size; areas and IoUs are those of the whole image. `kind` of a segment is "hit", one
of `pq_repairs.KINDS`, "duplicate" (an object found twice), "crowd", or "excused" (neither right nor wrong).

The journal stands beside that of the figures and works like it (`evaluation.journal`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..data.records import Record
from ..errors import DataError
from ..metrics.comparable import (
    check_labels,
    check_sizes,
    instance_annotation,
    panoptic_annotation,
    panoptic_result,
    semantic_annotation,
)
from ..metrics.pq_repairs import NEAR, ComparedImage, compare_segments, kinds_of
from ..results.types import Instances, PanopticMap, Result, SemanticMap
from ..results.views import EDGE, LEAST_SCORE, Segments, Size, sampled, small_size, thumbnail
from ..structures import Task
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from ..structures.rle import as_text, encode_ids, encode_mask, encode_shape
from ..structures.run_lengths import areas_in, pair_counts
from .evaluate import Annotations, annotation_for

SHOWN_SCORE = 0.5  # of an object that counts in the figure of an image
LEAST_SHARE = 0.001  # of the pixels, for a pair of classes that are taken for each other
HIT, CROWD, EXCUSED, DUPLICATE = "hit", "crowd", "excused", "duplicate"


def view_of(
    record: Record,
    results: Mapping[Task, Result],
    annotation: Annotation | Annotations,
    categories: Categories,
    edge: int = EDGE,
) -> dict[str, Any]:
    """Return the view of one image, without its number.

    Args:
        record: the image's record.
        results: the results of one image by task, which know its pixels.
        annotation: its annotation.
        categories: the classes.
        edge: longest edge of the thumbnail in pixels; smaller images are not enlarged.

    Raises:
        DataError: a result and its annotation do not fit each other.
        ConfigError: the annotation does not have what a task needs.
    """
    first = next(iter(results.values()))
    size = (int(first.size[0]), int(first.size[1]))
    small = small_size(size, edge)
    tasks = {}
    for task, result in results.items():
        own = annotation_for(task, annotation)
        if own is not None:
            check_sizes(result, own)
            tasks[task] = _comparison(result, own, categories, small)
    return {"name": record.name, "size": list(size), "thumbnail": thumbnail(first.image, small), "tasks": tasks}


def view_if_comparable(
    record: Record,
    results: Mapping[Task, Result],
    annotation: Annotation | Annotations,
    categories: Categories,
    edge: int = EDGE,
) -> dict[str, Any] | None:
    """Return what `view_of` does; None where a result and its annotation do not fit each other.

    The metrics compare the same, and name that error as the one of the image.
    """
    try:
        return view_of(record, results, annotation, categories, edge)
    except DataError:
        return None


def _comparison(result: Result, annotation: Annotation, categories: Categories, small: Size) -> dict[str, Any]:
    if isinstance(result, Instances):
        return _instances(result, annotation, categories, small)
    if isinstance(result, PanopticMap):
        return _panoptic(result, annotation, categories, small)
    assert isinstance(result, SemanticMap)
    return _semantic(result, annotation, categories, small)


# --- one function for each task ---------------------------------------------------------------------------------------


def _panoptic(result: PanopticMap, annotation: Annotation, categories: Categories, small: Size) -> dict[str, Any]:
    truth = panoptic_annotation(annotation)
    image = compare_segments(result, truth, len(categories))
    kinds_T, kinds_F = kinds_of(image)
    partners_T, partners_F = _partners(image)
    true = [
        _segment(label, area, kind or HIT, partner, _at(image.iou_TF, t, partner))
        for t, (label, area, kind, partner) in enumerate(
            zip(image.labels_T, image.areas_T, kinds_T, partners_T, strict=True)
        )
    ]
    score_of = {each.id: each.score for each in result.segments}
    found = []
    for f, (label, area, kind, partner) in enumerate(
        zip(image.labels_F, image.areas_F, kinds_F, partners_F, strict=True)
    ):
        kind = kind or (EXCUSED if image.excused_F[f] else HIT)
        segment = _segment(label, area, kind, partner, _at(image.iou_TF, partner, f))
        found.append({**segment, "score": round(float(score_of[int(image.ids_F[f])]), 4)})
    ids_T = image.ids_T.tolist()
    crowds = [each for each in truth.segments if each.iscrowd]
    areas = areas_in(truth.ids_HW) if crowds else {}
    true += [_segment(each.label, areas.get(each.id, 0), CROWD, None, 0.0) for each in crowds]
    _add_masks(true, sampled(truth.ids_HW, small), [*ids_T, *(each.id for each in crowds)])
    _add_masks(found, sampled(result.ids_HW, small), image.ids_F.tolist())
    return {"figure": _quality(true, found), "true": true, "found": found}


def _semantic(result: SemanticMap, annotation: Annotation, categories: Categories, small: Size) -> dict[str, Any]:
    truth = semantic_annotation(annotation, categories)
    found_map = panoptic_result(result)  # checks the numbers of the classes; ids are class numbers + 1
    first, second, counts = pair_counts(truth.labels_HW, found_map.ids_HW)
    counted = first != truth.ignore
    first, second, counts = first[counted], second[counted] - 1, counts[counted]
    check_labels(first.tolist(), len(categories))
    areas_T, areas_F = _sums(first, counts), _sums(second[second >= 0], counts[second >= 0])
    both = _sums(first[first == second], counts[first == second])
    ious = {k: both.get(k, 0) / (areas_T.get(k, 0) + areas_F.get(k, 0) - both.get(k, 0)) for k in {*areas_T, *areas_F}}
    labels_T, labels_F = sorted(areas_T), sorted(areas_F)
    row_T, row_F = ({label: i for i, label in enumerate(labels)} for labels in (labels_T, labels_F))
    true = [_class_segment(k, areas_T[k], "missed", row_F.get(k), ious[k]) for k in labels_T]
    found = [{**_class_segment(k, areas_F[k], "spurious", row_T.get(k), ious[k]), "score": None} for k in labels_F]
    _add_masks(true, sampled(truth.labels_HW, small), labels_T)
    _add_masks(found, sampled(found_map.ids_HW, small), [label + 1 for label in labels_F])
    least = LEAST_SHARE * counts.sum()
    pairs = zip(first.tolist(), second.tolist(), counts.tolist(), strict=True)
    confusion = [[t, f, count] for t, f, count in pairs if f >= 0 and count >= least]
    figure = 100 * float(np.mean(list(ious.values()))) if ious else None
    return {"figure": _rounded(figure), "true": true, "found": found, "confusion": confusion}


def _instances(result: Instances, annotation: Annotation, categories: Categories, small: Size) -> dict[str, Any]:
    truth = instance_annotation(annotation, categories)
    labels = [each.label for each in truth.objects]
    check_labels([*labels, *map(int, result.labels_N)], len(categories))
    kept = np.flatnonzero(result.scores_N >= LEAST_SCORE)
    kept = kept[np.argsort(-result.scores_N[kept], kind="stable")].tolist()
    rles_T = [encode_shape(each.shape, truth.size) for each in truth.objects]
    rles_F = [result.rles[i] for i in kept]
    crowds = [int(each.iscrowd) for each in truth.objects]
    iou_FT = np.zeros((len(rles_F), len(rles_T)))
    if rles_F and rles_T:
        iou_FT = np.asarray(coco_mask.iou(rles_F, rles_T, crowds))
    labels_T, labels_F = np.array(labels, np.int64), np.array(result.labels_N[kept], np.int64)
    matched = _matched(iou_FT, labels_T, labels_F, np.array(crowds, bool))
    (kinds_T, partners_T), (kinds_F, partners_F) = matched
    # One by one, because pycocotools 2.0.11 with numpy 2 takes at most 255 at once.
    areas_T, areas_F = ([int(coco_mask.area(rle)) for rle in rles] for rles in (rles_T, rles_F))
    true = [
        _segment(labels[t], areas_T[t], kinds_T[t], partners_T[t], _at(iou_FT.T, t, partners_T[t]))
        for t in range(len(labels))
    ]
    found = [
        {
            **_segment(labels_F[f], areas_F[f], kinds_F[f], partners_F[f], _at(iou_FT, f, partners_F[f])),
            "score": round(float(result.scores_N[i]), 4),
        }
        for f, i in enumerate(kept)
    ]
    for segments, rles in ((true, rles_T), (found, rles_F)):
        for segment, rle in zip(segments, rles, strict=True):
            segment["counts"] = as_text(encode_mask(sampled(coco_mask.decode(rle), small)))["counts"]
    shown = [each for each in found if each["score"] >= SHOWN_SCORE]
    return {"figure": _quality(true, shown), "true": true, "found": found}


def _matched(
    iou_FT: np.ndarray, labels_T: np.ndarray, labels_F: np.ndarray, crowd_T: np.ndarray
) -> tuple[tuple[list[str], list[int | None]], tuple[list[str], list[int | None]]]:
    """Match objects at IoU 0.5 as COCO does, the best score first, and say what is wrong with the others.

    Returns:
        Kinds and partners of the true objects, and those of the found ones.
    """
    same_FT = labels_F[:, None] == labels_T
    kinds_T = [CROWD if crowd else "" for crowd in crowd_T.tolist()]
    kinds_F = [""] * len(labels_F)
    partners_T: list[int | None] = [None] * len(labels_T)
    partners_F: list[int | None] = [None] * len(labels_F)
    free_T = ~crowd_T
    for f in range(len(labels_F)):
        candidates_T = np.where(same_FT[f] & free_T, iou_FT[f], 0.0)
        if candidates_T.size and candidates_T.max() >= 0.5:
            t = int(candidates_T.argmax())
            free_T[t] = False
            kinds_F[f] = kinds_T[t] = HIT
            partners_F[f], partners_T[t] = t, f
        elif (same_FT[f] & crowd_T & (iou_FT[f] >= 0.5)).any():
            kinds_F[f] = EXCUSED
    plain_FT = iou_FT * ~crowd_T
    for f in (f for f, kind in enumerate(kinds_F) if not kind):
        kinds_F[f], partners_F[f] = _error(plain_FT[f], same_FT[f], "spurious", DUPLICATE)
    for t in (t for t, kind in enumerate(kinds_T) if not kind):
        kinds_T[t], partners_T[t] = _error(plain_FT[:, t], same_FT[:, t], "missed", "boundary")
    return (kinds_T, partners_T), (kinds_F, partners_F)


def _error(ious: np.ndarray, same: np.ndarray, alone: str, twice: str) -> tuple[str, int | None]:
    """Return the error of an object that hits nothing, and the number of the object that explains it."""
    for kind, wanted, least in ((twice, same, 0.5), ("class", ~same, 0.5), ("boundary", same, NEAR)):
        near = np.where(wanted, ious, 0.0)
        if near.size and near.max() >= least:
            return kind, int(near.argmax())
    return alone, None


# --- segments ---------------------------------------------------------------------------------------------------------


def _segment(label: Any, area: Any, kind: str, partner: int | None, iou: float) -> dict[str, Any]:
    return {"label": int(label), "area": int(area), "kind": kind, "partner": partner, "iou": round(iou, 4)}


def _class_segment(label: int, area: int, alone: str, partner: int | None, iou: float) -> dict[str, Any]:
    return _segment(label, area, alone if partner is None else HIT if iou > 0.5 else "boundary", partner, iou)


def _partners(p: ComparedImage) -> tuple[list[int | None], list[int | None]]:
    """Return the segment that each true and each found segment is compared with: its hit, else the nearest."""
    near_TF = np.where(p.same_TF | (p.iou_TF > 0.5), p.iou_TF + p.hit_TF, 0.0)

    def best(rows: np.ndarray) -> list[int | None]:
        return [int(row.argmax()) if row.size and row.max() > 0 else None for row in rows]

    return best(near_TF), best(near_TF.T)


def _at(ious: np.ndarray, row: int | None, column: int | None) -> float:
    return 0.0 if row is None or column is None else float(ious[row, column])


def _add_masks(segments: Segments, ids_HW: np.ndarray, ids: Sequence[int]) -> None:
    for segment, rle in zip(segments, encode_ids(ids_HW, ids), strict=True):
        segment["counts"] = as_text(rle)["counts"]


def _quality(true: Segments, found: Segments) -> float | None:
    """Return Σ IoU / (hits + half of the wrong + half of the missed) in percent; None where there is nothing."""
    hits = [each["iou"] for each in found if each["kind"] == HIT]
    wrong = sum(each["kind"] not in (HIT, EXCUSED) for each in found)
    missed = sum(each["kind"] != CROWD for each in true) - len(hits)
    weight = len(hits) + (wrong + missed) / 2
    return _rounded(100 * sum(hits) / weight if weight else None)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None or math.isnan(figure) else round(figure, 3)


def _sums(labels: np.ndarray, counts: np.ndarray) -> dict[int, int]:
    return {int(label): int(counts[labels == label].sum()) for label in np.unique(labels)}

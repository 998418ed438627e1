"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019), by the rules of panopticapi.

The rules are in docs/methods/published-behaviour.md#9.
"""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..results.types import PanopticMap, SemanticMap
from ..structures import Task
from ..structures.annotations import Annotation, PanopticAnnotation
from ..structures.categories import Categories
from ..structures.run_lengths import pair_counts
from . import Figures, State
from .comparable import check_ids, check_sizes, panoptic_annotation, panoptic_result, segments_by_id
from .state_io import reading, share, whole

VOID = 0


@dataclass
class Matches:
    """Matches of one image.

    Attributes:
        hits: class number and IoU of each hit.
        wrong: class numbers of the false positives.
        missed: class numbers of the false negatives.
    """

    hits: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)


class PanopticQuality:
    """PQ, SQ and RQ over all classes, things, stuff and per class.

    PQ of a class is Σ IoU of its hits / (hits + half of the wrong + half of the missed). SQ is the mean IoU of the
    hits, RQ the rest of the product. The means are over classes that occur in results or annotations. Figures are equal
    to those of panopticapi, run in one process over the same images in the same order, to the last bit.

    The metric keeps the IoUs of the hits of each image, 8 bytes each: sums of sums would not be equal to the last bit.

    Args:
        task: "panoptic", or "semantic" for maps of classes, where each class of an image is one segment.
    """

    def __init__(self, categories: Categories, *, task: Task = "panoptic"):
        self.categories, self.task = categories, task
        self._ious = [array("d") for _ in categories]
        self._wrong = np.zeros(len(categories), dtype=np.int64)
        self._missed = np.zeros(len(categories), dtype=np.int64)

    def update(self, result: PanopticMap | SemanticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        found = match(panoptic_result(result), panoptic_annotation(annotation), len(self.categories))
        for label, iou in found.hits:
            self._ious[label].append(iou)
        for label in found.wrong:
            self._wrong[label] += 1
        for label in found.missed:
            self._missed[label] += 1

    def merge(self, other: PanopticQuality) -> None:
        for own, others in zip(self._ious, other._ious, strict=True):
            own.extend(others)
        self._wrong += other._wrong
        self._missed += other._missed

    def fresh(self) -> PanopticQuality:
        return PanopticQuality(self.categories, task=self.task)

    def state(self) -> State:
        """Return the hits and counts of the classes that occur.

        Returns:
            {"classes": [[class number, IoUs of the hits in order, number of wrong, number of missed], …]}.
        """
        counts = zip(self._ious, self._wrong.tolist(), self._missed.tolist(), strict=True)
        rows = [[label, ious.tolist(), wrong, missed] for label, (ious, wrong, missed) in enumerate(counts)]
        return {"classes": [row for row in rows if row[1] or row[2] or row[3]]}

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            for label, ious, wrong, missed in state["classes"]:
                part._ious[whole(label, len(self.categories))].extend(map(share, ious))
                part._wrong[label] += whole(wrong)
                part._missed[label] += whole(missed)
        self.merge(part)

    def compute(self) -> Figures:
        rows = self._rows()
        things = [row for row, category in zip(rows, self.categories, strict=True) if category.isthing]
        stuff = [row for row, category in zip(rows, self.categories, strict=True) if not category.isthing]
        figures: Figures = {}
        for suffix, group in (("", rows), ("_things", things), ("_stuff", stuff)):
            figures |= {key + suffix: _mean(row[key] for row in group) for key in ("pq", "sq", "rq")}
        return {**figures, "per_class": self._per_class(rows)}

    def _rows(self) -> list[dict[str, float]]:
        # One addition after another, in the order of the images, as in panopticapi. `sum` and numpy round differently.
        ious = [functools.reduce(operator.add, each, 0.0) for each in self._ious]
        hits = map(len, self._ious)
        return [_row(*values) for values in zip(ious, hits, self._wrong.tolist(), self._missed.tolist(), strict=True)]

    def _per_class(self, rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        return {category.name: _in_percent(row) for category, row in zip(self.categories, rows, strict=True)}


class StuffQuality(PanopticQuality):
    """PQ of semantic models (MaskFormer paper, PQ^St).

    Each class of a map is one segment, countable or not, and pixels that the annotation ignores are void.

    Figures, in percent:
        pq_stuff, sq_stuff, rq_stuff: over all classes.
    """

    def __init__(self, categories: Categories):
        super().__init__(categories, task="semantic")

    def fresh(self) -> StuffQuality:
        return StuffQuality(self.categories)

    def compute(self) -> Figures:
        rows = self._rows()
        figures = {f"{key}_stuff": _mean(row[key] for row in rows) for key in ("pq", "sq", "rq")}
        return {**figures, "per_class": self._per_class(rows)}


def match(result: PanopticMap, annotation: PanopticAnnotation, num_classes: int) -> Matches:
    """Match the segments of one image, by the rules of panopticapi.

    A found and a true segment of one class are a hit when their IoU is above 0.5. The union leaves out the part of the
    found segment that lies on void. A crowd is never hit and never missed. A found segment without a hit does not count
    when more than half of it lies on void and on the crowd of its class. Where an image lists several crowds of a
    class, the last one is taken.

    Raises:
        DataError: a class number does not exist, two segments have one id, or the result's map has ids without a
            segment.
    """
    true, found = segments_by_id(annotation, result, num_classes)
    shared, true_area, found_area = _areas(result, annotation)
    check_ids(found_area, found)
    matches, matched_true, matched_found = Matches(), set(), set()
    for (true_id, found_id), overlap in shared.items():
        if true_id not in true or found_id not in found:
            continue
        if true[true_id].iscrowd or true[true_id].label != found[found_id].label:
            continue
        union = found_area[found_id] + true_area[true_id] - overlap - shared.get((VOID, found_id), 0)
        iou = overlap / union
        if iou > 0.5:
            matches.hits.append((true[true_id].label, iou))
            matched_true.add(true_id)
            matched_found.add(found_id)
    matches.missed = [each.label for i, each in true.items() if not each.iscrowd and i not in matched_true]
    crowds = {each.label: i for i, each in true.items() if each.iscrowd}
    for found_id, area in found_area.items():
        if found_id == VOID or found_id in matched_found:
            continue
        label = found[found_id].label
        on_crowd = shared.get((crowds[label], found_id), 0) if label in crowds else 0
        excused = shared.get((VOID, found_id), 0) + on_crowd
        if excused / area <= 0.5:
            matches.wrong.append(label)
    return matches


def _areas(
    result: PanopticMap, annotation: PanopticAnnotation
) -> tuple[dict[tuple[int, int], int], dict[int, int], dict[int, int]]:
    """Count the pixels of each pair (true id, found id) in ascending order, of each true id, and of each found id."""
    true_ids, found_ids, counts = (values.tolist() for values in pair_counts(annotation.ids_HW, result.ids_HW))
    shared: dict[tuple[int, int], int] = {}
    true_area: dict[int, int] = {}
    found_area: dict[int, int] = {}
    for true_id, found_id, count in zip(true_ids, found_ids, counts, strict=True):
        shared[true_id, found_id] = count
        true_area[true_id] = true_area.get(true_id, 0) + count
        found_area[found_id] = found_area.get(found_id, 0) + count
    return shared, true_area, found_area


def _row(iou: float, hits: int, wrong: int, missed: int) -> dict[str, float]:
    if not hits + wrong + missed:
        return {"pq": math.nan, "sq": math.nan, "rq": math.nan, "tp": 0, "fp": 0, "fn": 0}
    weight = hits + 0.5 * wrong + 0.5 * missed
    return {
        "pq": iou / weight,
        "sq": iou / hits if hits else 0.0,
        "rq": hits / weight,
        "tp": hits,
        "fp": wrong,
        "fn": missed,
    }


def _mean(shares: Iterable[float]) -> float:
    """Return the mean in percent of the shares that are numbers; NaN without any."""
    present = [share for share in shares if not math.isnan(share)]
    # From Python 3.12 on, `sum` rounds differently from panopticapi.
    return 100 * (functools.reduce(operator.add, present, 0.0) / len(present)) if present else math.nan


def _in_percent(row: dict[str, float]) -> dict[str, float]:
    return {key: 100 * value if key in ("pq", "sq", "rq") else value for key, value in row.items()}

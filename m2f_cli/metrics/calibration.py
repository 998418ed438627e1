"""Calibration of scores: the share of hits among the segments of each score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError
from ..results.types import Instances, PanopticMap
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from ..structures.rle import RLE, encode_shape
from . import Figures, State
from .comparable import check_labels, check_sizes, instance_annotation, panoptic_annotation
from .exact_sum import UNIT, ExactSum, to_units
from .pq_repairs import compare_segments
from .state_io import reading

STEPS = 100  # ranges of scores that are counted
COUNT, HITS, IOU, SCORES = range(4)  # the table's columns; the last two in units of 2^-40
CAUTION = (
    "Chosen on these very images, so it flatters: choose on one set of images, report figures of another. Scores "
    "below the threshold that the results were made with cannot be seen."
)


class _Calibration:
    """Scores of segments in steps of 0.01, with the number of hits among them, per class.

    A segment that the score threshold has removed is not seen. All figures are NaN without any scored segment.

    Figures, in percent:
        ece: expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017). It is the mean distance of
            mean score and share of hits over `bins` ranges of scores of one width, weighted by their segments.
        mean_score: mean of the scores.
        precision: share of hits.
        per_class: the same figures of each class, and the number of its scored segments.
        tables.reliability: the ranges of scores.

    Args:
        bins: number of ranges in the table and for ece; a divisor of 100.

    Raises:
        ConfigError: `bins` is no divisor of 100.
    """

    def __init__(self, categories: Categories, *, bins: int = 10):
        if bins < 1 or STEPS % bins:
            raise ConfigError(f"bins = {bins!r} should divide {STEPS}.", hint="For example 10 or 20.")
        self.categories, self.bins = categories, bins
        self._scored = ExactSum((len(categories), STEPS), 4)
        self._true = ExactSum((len(categories),), 1)

    def fresh(self) -> Any:
        return type(self)(self.categories, bins=self.bins)

    def merge(self, other: _Calibration) -> None:
        self._scored.merge(other._scored)
        self._true.merge(other._true)

    def state(self) -> State:
        return {"scored": self._scored.state(), "true": self._true.state()}

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            part._scored.restore(state["scored"])
            part._true.restore(state["true"])
        self.merge(part)

    def compute(self) -> Figures:
        scored_KX4 = self._scored.array()
        per_class = {
            category.name: {**self._summary(rows_X4), "count": int(rows_X4[:, COUNT].sum())}
            for category, rows_X4 in zip(self.categories, scored_KX4, strict=True)
        }
        whole_X4 = scored_KX4.sum(0)
        return {**self._summary(whole_X4), "per_class": per_class, "tables": {"reliability": self._rows(whole_X4)}}

    def _summary(self, scored_X4: np.ndarray) -> dict[str, float]:
        count, hits, _, scores = scored_X4.sum(0).tolist()
        if not count:
            return {"ece": math.nan, "mean_score": math.nan, "precision": math.nan}
        rows = [row for row in self._rows(scored_X4) if row["count"]]
        ece = sum(row["count"] * abs(row["mean_score"] - row["precision"]) for row in rows) / count
        return {"ece": ece, "mean_score": 100 * scores / UNIT / count, "precision": 100 * hits / count}

    def _rows(self, scored_X4: np.ndarray) -> list[dict[str, float]]:
        rows = []
        for i, (count, hits, _, scores) in enumerate(scored_X4.reshape(self.bins, -1, 4).sum(1).tolist()):
            share = {
                "mean_score": 100 * scores / UNIT / count if count else math.nan,
                "precision": 100 * hits / count if count else math.nan,
            }
            rows.append({"from": i / self.bins, "to": (i + 1) / self.bins, "count": count, **share})
        return rows

    def _note(self, label: int, score: float, iou: float, *, hit: bool) -> None:
        if not 0 <= score <= 1:  # also refuses NaN
            raise DataError(f"A found segment has the score {score!r}, which should be from 0 to 1.")
        place = (label, min(int(score * STEPS), STEPS - 1))
        self._scored.add(place, 1, int(hit), to_units(iou) if hit else 0, to_units(score))

    def _note_all(self, noted: Iterable[tuple[int, float, float, bool]], true: Iterable[int]) -> None:
        part = self.fresh()  # a wrong score must not leave half of an image behind
        for label, score, iou, hit in noted:
            part._note(int(label), float(score), float(iou), hit=bool(hit))
        for label in true:
            part._true.add((int(label),), 1)
        self.merge(part)


class PanopticCalibration(_Calibration):
    __doc__ = f"""Calibration of the scores of panoptic segments.

    A hit is a hit of PQ, and segments that PQ excuses are left out. "tables" also has "object_threshold": PQ for each
    threshold in steps of 0.01 if segments of lower score were simply taken away, and the best. This is an estimate:
    with a higher threshold in the model other segments would take their pixels. `evaluation.threshold_sweep.sweep`
    measures it.

    {_Calibration.__doc__}"""

    task = "panoptic"

    def update(self, result: PanopticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        image = compare_segments(result, panoptic_annotation(annotation), len(self.categories))
        ids = set(np.unique(result.ids_HW).tolist())
        score_of = {each.id: each.score for each in result.segments if each.id in ids and each.id}
        scores = [score_of[i] for i in sorted(score_of)]
        iou_F = (image.iou_TF * image.hit_TF).sum(0)
        noted = zip(image.labels_F, scores, iou_F, image.is_hit_F, image.excused_F, strict=True)
        self._note_all(((*each, hit) for *each, hit, excused in noted if not excused), image.labels_T)

    def compute(self) -> Figures:
        figures = super().compute()
        figures["tables"]["object_threshold"] = self._threshold()
        return figures

    def _threshold(self) -> dict[str, Any]:
        # Sums from the highest score down give the segments that are kept at each threshold.
        kept_KX4 = self._scored.array()[:, ::-1].cumsum(1)[:, ::-1]
        true_K1 = self._true.array()
        with np.errstate(invalid="ignore", divide="ignore"):
            pq_KX = kept_KX4[..., IOU] / UNIT / ((kept_KX4[..., COUNT] + true_K1) / 2)
        present_KX = (kept_KX4[..., COUNT] + true_K1) > 0
        counts_X = present_KX.sum(0)
        pq_X = 100 * np.where(present_KX, pq_KX, 0).sum(0) / np.maximum(counts_X, 1)
        curve = [{"threshold": i / STEPS, "pq": float(pq)} for i, pq in enumerate(pq_X) if counts_X[i]]
        best = max(curve, key=lambda row: row["pq"], default=None)
        return {"best": best, "now": curve[0] if curve else None, "curve": curve, "caution": CAUTION}


class InstanceCalibration(_Calibration):
    __doc__ = f"""Calibration of the scores of found objects.

    Hits are those of COCO at IoU 0.5. The best score first, each found object takes the free true one of its class
    with the highest IoU of at least 0.5. An object that takes none is left out if it lies at least half on a crowd of
    its class.

    {_Calibration.__doc__}"""

    task = "instance"

    def update(self, result: Instances, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        objects = instance_annotation(annotation, self.categories).objects
        labels = [each.label for each in objects]
        check_labels([*labels, *map(int, result.labels_N)], len(self.categories))
        rles = [encode_shape(each.shape, annotation.size) for each in objects]
        noted: list[tuple[int, float, float, bool]] = []
        for label in np.unique(result.labels_N):
            own = [i for i, each in enumerate(labels) if each == label]
            chosen = np.flatnonzero(result.labels_N == label)
            noted += _matched(result, chosen, [rles[i] for i in own], [objects[i].iscrowd for i in own])
        self._note_all(noted, (each.label for each in objects if not each.iscrowd))


def _matched(
    result: Instances, chosen: np.ndarray, true: list[RLE], crowds: list[bool]
) -> Iterable[tuple[int, float, float, bool]]:
    """Yield the class, the score, the IoU and the verdict (hit or not) of each found object of one class.

    Objects that a crowd excuses are left out.
    """
    chosen = chosen[np.argsort(-result.scores_N[chosen], kind="stable")]
    free = ~np.array(crowds, bool)
    for i in chosen:
        score, label = float(result.scores_N[i]), int(result.labels_N[i])
        ious = np.zeros(0)
        if true:  # with a crowd, the share of the found object that lies on it
            ious = np.asarray(coco_mask.iou([result.rles[i]], true, [int(each) for each in crowds]))[0]
        own = np.where(free, ious, -1.0)
        if own.size and own.max() >= 0.5:
            free[own.argmax()] = False
            yield label, score, float(own.max()), True
        elif not (ious[np.array(crowds, bool)] >= 0.5).any():
            yield label, score, 0.0, False

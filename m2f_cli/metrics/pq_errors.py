"""Loss of panoptic quality by kind of error: the gain in PQ if one kind of error were repaired."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..results.types import PanopticMap, SemanticMap
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from . import Figures, State
from .comparable import check_sizes, panoptic_annotation, panoptic_result
from .exact_sum import UNIT, ExactSum, to_units
from .pq_repairs import KINDS, SIZES, Change, as_found, compare_segments, confusions, repairs
from .state_io import reading, whole

AS_FOUND = len(KINDS)  # row of the counts without a repair, after those of the kinds
IOU, HITS, WRONG, MISSED = range(4)  # the table's columns


class PanopticErrors:
    """PQ that each kind of error costs.

    Kinds, in `pq_repairs.KINDS`: class (wrong class on a right mask), split, merged, boundary (imprecise), missed,
    spurious. `pq_repairs` defines which error a segment has and what a repair is.

    The losses need not add up to 100 - PQ, since PQ is a quotient; with all errors repaired PQ is 100. A class that
    occurs only in results leaves the mean once its last false segment is repaired, as it does in PQ; its own losses are
    then NaN. The state does not grow with the number of images. Sums are exact, so their order does not matter.

    Figures, in percent:
        pq_lost_<kind>: PQ with all errors of that kind repaired, and nothing else, minus PQ as it is.
        per_class: PQ and losses of each class, and the number of false segments (true and found) that each kind
            explains.
        tables.sizes: figures of small, medium and large segments alone: PQ, number of true segments, hits and wrong
            segments, mean IoU of hits, losses by their errors. The limits are 32² and 96² pixels. True segments go by
            their own area, false ones by theirs. An error belongs to the size of its true segment, and a merged found
            segment to the size of the largest.
        tables.confusion: records (true class, found class, count) of segment pairs of IoU > 0.5, most frequent first;
            None stands for no such partner.
        tables.worst_pictures: images that cost most. `number` is the image's index among those counted, from 0. `lost`
            is the sum over segments of what is missing to IoU 1, where each missed or wrong one counts half a segment.
        tables.pq: PQ as it is, equal to the metric "pq" up to 1e-9.
        tables.all_repaired: PQ with everything repaired.

    Args:
        worst: the number of images to name.
    """

    task = "panoptic"

    def __init__(self, categories: Categories, *, worst: int = 20):
        self.categories, self.worst = categories, worst
        count = len(categories)
        self._sums = ExactSum((len(KINDS) + 1, len(SIZES), count), 4)
        self._confusion = ExactSum((count + 1, count + 1), 1)
        self._images = 0
        self._worst: list[list[int]] = []  # lost · 2, number, IoU, hits, wrong, missed, errors of each kind

    def update(self, result: PanopticMap | SemanticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        none = len(self.categories)
        image = compare_segments(panoptic_result(result), panoptic_annotation(annotation), none)
        seen, found = as_found(image), repairs(image)
        self._add(AS_FOUND, seen)
        for number, kind in enumerate(KINDS):
            self._add(number, found[kind])
        for true_label, label in confusions(image):
            self._confusion.add((none if true_label is None else true_label, none if label is None else label), 1)
        self._note([_row_of(self._images, seen, found)])
        self._images += 1

    def fresh(self) -> PanopticErrors:
        return PanopticErrors(self.categories, worst=self.worst)

    def merge(self, other: PanopticErrors) -> None:
        self._sums.merge(other._sums)
        self._confusion.merge(other._confusion)
        self._note([[lost, number + self._images, *rest] for lost, number, *rest in other._worst])
        self._images += other._images

    def state(self) -> State:
        return {
            "pictures": self._images,
            "sums": self._sums.state(),
            "confusion": self._confusion.state(),
            "worst": self._worst,
        }

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            part._images = whole(state["pictures"])
            part._sums.restore(state["sums"])
            part._confusion.restore(state["confusion"])
            part._note([list(map(whole, row)) for row in state["worst"]])
            if any(len(row) != 6 + len(KINDS) or row[1] >= part._images for row in part._worst):
                raise ValueError("the worst images are no rows of this metric")
        self.merge(part)

    def compute(self) -> Figures:
        sums_ESK4 = self._sums.array()
        by_kind_EK4 = sums_ESK4.sum(1)
        found_K4 = by_kind_EK4[AS_FOUND]
        repaired = {kind: _pq(found_K4 + by_kind_EK4[i]) for i, kind in enumerate(KINDS)}
        pq_K = _pq(found_K4)
        losses = {f"pq_lost_{kind}": _mean(repaired[kind]) - _mean(pq_K) for kind in KINDS}
        tables = {
            "sizes": self._sizes(sums_ESK4),
            "confusion": self._pairs(),
            "worst_pictures": self._worst_images(),
            "pq": _mean(pq_K),
            "all_repaired": _mean(_pq(_without_errors(by_kind_EK4))),
        }
        per_class = {}
        for label, category in enumerate(self.categories):
            row = {"pq": float(pq_K[label])}
            for i, kind in enumerate(KINDS):
                row[f"pq_lost_{kind}"] = float(repaired[kind][label] - pq_K[label])
                row[kind] = -int(by_kind_EK4[i, label, WRONG] + by_kind_EK4[i, label, MISSED])
            per_class[category.name] = row
        return {**losses, "per_class": per_class, "tables": tables}

    def _sizes(self, sums_ESK4: np.ndarray) -> dict[str, dict[str, float]]:
        whole_K4 = sums_ESK4[AS_FOUND].sum(0)
        rows = {}
        for s, size in enumerate(SIZES):
            own_K4 = sums_ESK4[AS_FOUND, s]
            iou, hits, wrong, missed = own_K4.sum(0).tolist()
            rows[size] = {
                "pq": _mean(_pq(own_K4)),
                "segments": hits + missed,
                "hits": hits,
                "wrong": wrong,
                "iou_of_hits": 100 * iou / UNIT / hits if hits else math.nan,
            }
            for i, kind in enumerate(KINDS):
                rows[size][f"pq_lost_{kind}"] = _mean(_pq(whole_K4 + sums_ESK4[i, s])) - _mean(_pq(whole_K4))
        return rows

    def _pairs(self) -> list[dict[str, Any]]:
        names = [*(category.name for category in self.categories), None]
        rows = sorted(self._confusion.state(), key=lambda row: -row[2])
        return [{"true": names[true], "found": names[found], "count": count} for true, found, count in rows]

    def _worst_images(self) -> list[dict[str, Any]]:
        rows = []
        for lost, number, iou, hits, wrong, missed, *errors in self._worst:
            weight = hits + (wrong + missed) / 2
            own = {"number": number, "lost": lost / 2 / UNIT, "pq": 100 * iou / UNIT / weight if weight else math.nan}
            rows.append(
                {**own, "hits": hits, "wrong": wrong, "missed": missed, "errors": dict(zip(KINDS, errors, strict=True))}
            )
        return rows

    def _add(self, number: int, changes: list[Change]) -> None:
        for each in changes:
            self._sums.add((number, each.size, each.label), to_units(each.iou), each.hits, each.wrong, each.missed)

    def _note(self, rows: list[list[int]]) -> None:
        self._worst = sorted([*self._worst, *rows], key=lambda row: (-row[0], row[1]))[: self.worst]


def _row_of(number: int, seen: list[Change], found: dict[str, list[Change]]) -> list[int]:
    iou = sum(to_units(each.iou) for each in seen)
    hits, wrong, missed = (sum(getattr(each, name) for each in seen) for name in ("hits", "wrong", "missed"))
    errors = [-sum(each.wrong + each.missed for each in found[kind]) for kind in KINDS]
    return [(2 * hits + wrong + missed) * UNIT - 2 * iou, number, iou, hits, wrong, missed, *errors]


def _without_errors(by_kind_EK4: np.ndarray) -> np.ndarray:
    """Apply all repairs together.

    Each alone may leave a hit of IoU below 1, whose boundary is repaired in the end.
    """
    sums_K4: np.ndarray = by_kind_EK4.sum(0)
    sums_K4[:, IOU] = sums_K4[:, HITS] * UNIT
    return sums_K4


def _pq(sums_K4: np.ndarray) -> np.ndarray:
    """Compute PQ of each class in percent; NaN where there is neither annotation nor result."""
    weights_K = sums_K4[:, HITS] + (sums_K4[:, WRONG] + sums_K4[:, MISSED]) / 2
    with np.errstate(invalid="ignore"):
        return np.where(weights_K > 0, 100 * (sums_K4[:, IOU] / UNIT) / weights_K, np.nan)


def _mean(values_K: np.ndarray) -> float:
    present = values_K[~np.isnan(values_K)]
    return float(present.mean()) if present.size else math.nan

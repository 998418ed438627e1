"""Figures over images that count any number of times, from the states of the images in the journal of an evaluation.

With each image once they are those of the metric itself, to the last bit; that is also how they are tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..metrics import Metric
from ..metrics.average_precision import AveragePrecision
from ..metrics.coco_matching import RECALLS, SIZES, THRESHOLDS, Ranked, precision_at_recalls
from ..metrics.mean_iou import MeanIoU
from ..metrics.panoptic_quality import PanopticQuality, StuffQuality
from ..metrics.state_io import reading

State = dict[str, Any]
MOST_RESAMPLES = 10**6
MOST_SLOW_RESAMPLES = 100  # of metrics that are restored and computed for each resample


class RunStates(Protocol):
    """Protocol of the N images of one run, ready to be resampled.

    Attributes:
        figures: names of the figures of the whole, the headline first.
        classes: names of the classes.
        annotation: (N, …) numbers from the annotations, equal for runs over the same annotations; None where the states
            do not tell.
        most_resamples: the most resamples that are affordable.
    """

    figures: list[str]
    classes: list[str]
    annotation: np.ndarray | None
    most_resamples: int

    def __len__(self) -> int: ...

    def __call__(self, weights_N: np.ndarray) -> np.ndarray:
        """Compute the figures, then those of the classes, in percent; NaN where there is nothing to measure.

        Args:
            weights_N: the number of times that each image counts (int64).
        """


def images_of(metric: Metric, states: Sequence[State]) -> RunStates:
    """Return the states of a metric's images, ready to be resampled.

    Raises:
        DataError: a state is damaged, or one of other settings.
    """
    kinds = {PanopticQuality: _Panoptic, AveragePrecision: _Ranking, MeanIoU: _Regions}
    kind = next((states_of for known, states_of in kinds.items() if isinstance(metric, known)), _Restored)
    with reading(metric):
        return kind(metric, states)


class _Panoptic:
    """States of PQ: IoUs of hits, in the order in which the metric adds them, and counts of the rest."""

    most_resamples = MOST_RESAMPLES

    def __init__(self, metric: PanopticQuality, states: Sequence[State]):
        self.classes = [category.name for category in metric.categories]
        every = np.ones(len(self.classes), bool)
        things = np.array([category.isthing for category in metric.categories], bool)
        is_stuff_metric = isinstance(metric, StuffQuality)
        self.groups = (
            {"pq_stuff": every} if is_stuff_metric else {"pq": every, "pq_things": things, "pq_stuff": ~things}
        )
        self.figures = list(self.groups)
        shape = len(states), len(self.classes)
        self.hits_NK, self.wrong_NK, self.missed_NK = (np.zeros(shape, np.int64) for _ in range(3))
        images, labels, ious = [], [], []
        for n, state in enumerate(states):
            part = metric.fresh()
            part.restore(state)  # refuses a damaged state
            for label, own, wrong, missed in part.state()["classes"]:
                self.hits_NK[n, label], self.wrong_NK[n, label], self.missed_NK[n, label] = len(own), wrong, missed
                images += [n] * len(own)
                labels += [label] * len(own)
                ious += own
        self.image_H, self.label_H = np.array(images, np.int64), np.array(labels, np.int64)
        self.iou_H = np.array(ious, np.float64)
        self.annotation = self.hits_NK + self.missed_NK

    def __len__(self) -> int:
        return len(self.hits_NK)

    def __call__(self, weights_N: np.ndarray) -> np.ndarray:
        weighted_H = self.iou_H * weights_N[self.image_H]
        iou_K = np.bincount(self.label_H, weights=weighted_H, minlength=len(self.classes))
        hits_K, wrong_K, missed_K = (weights_N @ each for each in (self.hits_NK, self.wrong_NK, self.missed_NK))
        weight_K = hits_K + 0.5 * wrong_K + 0.5 * missed_K
        with np.errstate(invalid="ignore"):
            pq_K = iou_K / weight_K  # 0 / 0 is NaN
        means = [_mean_one_by_one(pq_K[group & (weight_K > 0)]) for group in self.groups.values()]
        return np.array([*means, *(100 * pq_K)])


class _Regions:
    """States of mIoU: pixels of each class that are right, true, and found."""

    most_resamples = MOST_RESAMPLES
    figures = ["miou", "fwiou", "macc", "pacc"]  # noqa: RUF012 (of the protocol)

    def __init__(self, metric: MeanIoU, states: Sequence[State]):
        self.classes = [category.name for category in metric.categories]
        self.pixels_N3K = np.zeros((len(states), 3, len(self.classes)), np.int64)
        for n, state in enumerate(states):
            part = metric.fresh()
            part.restore(state)
            table = part.confusion
            self.pixels_N3K[n] = np.diagonal(table), table.sum(1), table[:, :-1].sum(0)
        self.annotation = self.pixels_N3K[:, 1]

    def __len__(self) -> int:
        return len(self.pixels_N3K)

    def __call__(self, weights_N: np.ndarray) -> np.ndarray:
        hits, true, found = np.tensordot(weights_N, self.pixels_N3K, 1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            iou, accuracy, share = hits / (true + found - hits), hits / true, true / true.sum()
            present = true > 0
            whole = [
                iou[present].sum() / present.sum(),
                (iou[present] * share[present]).sum() if present.any() else np.nan,
                accuracy[present].sum() / present.sum(),
                hits.sum() / true.sum(),
            ]
        iou[~present] = np.nan
        return 100 * np.array([*whole, *iou])


class _Ranking:
    """States of AP: verdicts on each found object, best first, and the image that it is in. Sorting is done once."""

    most_resamples = MOST_RESAMPLES

    def __init__(self, metric: AveragePrecision, states: Sequence[State]):
        self.figures = [metric.prefix + name for name in ("ap", "ap50", "ap75")]
        self.labels = metric.labels
        self.classes = [metric.categories[label].name for label in self.labels]
        self.annotation = np.zeros((len(states), len(self.labels)), np.int64)
        ranked = {label: [] for label in self.labels}
        for n, state in enumerate(states):
            metric.fresh().restore(state)  # refuses a damaged state
            for label, own in state["classes"]:
                part = Ranked.of_state(own, metric.max_dets[-1])
                ranked[label].append((n, part))
                self.annotation[n, self.labels.index(label)] = part.true[0]
        self.judged = [_judged(ranked[label]) for label in self.labels]

    def __len__(self) -> int:
        return len(self.annotation)

    def __call__(self, weights_N: np.ndarray) -> np.ndarray:
        precision_TRK = -np.ones((len(THRESHOLDS), len(RECALLS), len(self.labels)))
        for k, count in enumerate((weights_N @ self.annotation).tolist()):
            if count:
                image_F, hit_FT, out_FT = self.judged[k]
                for t in range(len(THRESHOLDS)):
                    times_F = np.where(out_FT[:, t], 0, weights_N[image_F])
                    precision_TRK[t, :, k] = precision_at_recalls(np.repeat(hit_FT[:, t], times_F), count)
        whole = [_mean_present(each) for each in (precision_TRK, precision_TRK[0], precision_TRK[5])]
        return np.array([*whole, *(_mean_present(precision_TRK[:, :, k]) for k in range(len(self.labels)))])


def _judged(parts: list[tuple[int, Ranked]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the found objects of one class and of all sizes, best first.

    Returns:
        The image of each (F), and for each threshold if it is a hit (F, T) and if it does not count (F, T).
    """
    whole = Ranked()
    for _, part in parts:
        whole.add(part)
    order_F = np.argsort(-np.array(whole.scores), kind="mergesort")
    image_F = np.repeat([n for n, _ in parts], [len(part.scores) for _, part in parts]).astype(np.int64)
    plane, count = len(SIZES) * len(THRESHOLDS), len(THRESHOLDS)
    bytes_FB = np.frombuffer(bytes(whole.judged), np.uint8).reshape(-1, 2 * plane // 8)[order_F]
    bits = np.unpackbits(bytes_FB, axis=1).astype(bool)
    return image_F[order_F], bits[:, :count], bits[:, plane : plane + count]


class _Restored:
    """States of any other metric, through its own `restore` and `compute`. Its first figure is the headline."""

    most_resamples = MOST_SLOW_RESAMPLES
    annotation = None

    def __init__(self, metric: Metric, states: Sequence[State]):
        self.metric, self.states = metric, states
        figures = self._compute(np.ones(len(states), np.int64))
        self.figures = [name for name, value in figures.items() if isinstance(value, float)]
        per_class = figures.get("per_class", {})
        self.column = next((key for row in per_class.values() for key in row), None)
        self.classes = list(per_class)

    def __len__(self) -> int:
        return len(self.states)

    def __call__(self, weights_N: np.ndarray) -> np.ndarray:
        figures = self._compute(weights_N)
        classes = [figures["per_class"][name][self.column] for name in self.classes]
        return np.array([*(figures[name] for name in self.figures), *classes], np.float64)

    def _compute(self, weights_N: np.ndarray) -> dict[str, Any]:
        metric = self.metric.fresh()
        for state, times in zip(self.states, weights_N.tolist(), strict=True):
            for _ in range(times):
                metric.restore(state)
        return metric.compute()


def _mean_one_by_one(shares: np.ndarray) -> float:
    """Return the mean in percent, added as the metric adds, not in numpy's pairs."""
    return 100 * (float(np.cumsum(shares)[-1]) / len(shares)) if len(shares) else np.nan


def _mean_present(values: np.ndarray) -> float:
    """Return the mean in percent of the values; -1 stands for a class without annotation. NaN: all are -1."""
    present = values[values > -1]
    return 100 * float(np.mean(present)) if present.size else np.nan

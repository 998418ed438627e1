"""Search for the best object and overlap thresholds: the network runs once for each image, not once for each pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.records import Record
from ..errors import ConfigError
from ..inference.base import BaseSegmenter, Wrapper
from ..metrics.panoptic_quality import PanopticQuality
from ..results.types import PanopticMap
from ..structures import Task
from ..structures.annotations import Annotation
from .evaluate import EvalFailure, EvalProgress, nothing_evaluated, scored
from .tables import Table, number

OBJECT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OVERLAP = (0.5, 0.6, 0.7, 0.8, 0.9)
CAUTION = (
    "The best pair was chosen on the very images that it is measured on, so its figure flatters. The figure by "
    "halves is what choosing on one half of the images gives on the other."
)


@dataclass(frozen=True)
class Pair:
    """Pair of thresholds and the figures that they give, in percent."""

    object_threshold: float
    overlap_threshold: float
    pq: float
    sq: float
    rq: float


@dataclass(frozen=True)
class Sweep:
    """PQ of every pair of thresholds over the same images.

    Attributes:
        pairs: the pairs with their figures.
        best: the pair of the highest PQ; of equal ones the first.
        now: the pair of the model's own thresholds, where it has some.
        by_halves: PQ where each half of the images (every other one) is measured with the pair that is best on the
            other half; the mean of both halves. NaN with fewer than two images.
        images: number of images that were scored.
        failures: images that could not be evaluated.
        caution: a warning for people, beside the figures.
    """

    pairs: list[Pair]
    best: Pair
    now: Pair | None
    by_halves: float
    images: int
    failures: list[EvalFailure] = field(default_factory=list)
    caution: str = CAUTION

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in which NaN is None."""
        tree = asdict(self)
        for row in (tree, *tree["pairs"], tree["best"], tree["now"] or {}):
            row.update({key: None for key, value in row.items() if isinstance(value, float) and math.isnan(value)})
        return tree

    def tables(self) -> list[Table]:
        """Return tables for a terminal, (title, columns, rows): the best pair, and PQ of all pairs."""
        chosen = [("now", self.now), ("best on these images", self.best)]
        rows = [
            [name, f"{each.object_threshold:g}", f"{each.overlap_threshold:g}", number(each.pq)]
            for name, each in chosen
            if each is not None
        ]
        rows.append(["chosen on the other half", "", "", number(self.by_halves)])
        columns = sorted({each.overlap_threshold for each in self.pairs})
        grid = {(each.object_threshold, each.overlap_threshold): each.pq for each in self.pairs}
        lines = [[f"{a:g}", *(number(grid.get((a, b))) for b in columns)] for a in sorted({a for a, _ in grid})]
        return [
            (f"Thresholds over {self.images} images. {self.caution}", ["", "object", "overlap", "PQ"], rows),
            ("PQ by thresholds", ["object \\ overlap", *(f"{b:g}" for b in columns)], lines),
        ]


def sweep(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    *,
    object_thresholds: Sequence[float] = OBJECT,
    overlap_thresholds: Sequence[float] = OVERLAP,
    workers: int = 2,
    on_progress: Callable[[EvalProgress], None] | None = None,
) -> Sweep:
    """Measure PQ for each pair of thresholds, and for the model's own pair.

    Each image goes through the network once and is finished once for each pair, one after the other; only counts are
    kept. The figures of a pair are those of `evaluate` with these thresholds.

    Args:
        segmenter: a `Segmenter` that does panoptic segmentation, or a wrapper around one.
        records: annotated images. One that cannot be evaluated is reported and not counted, for no pair.
        object_thresholds: numbers from 0 to 1.
        overlap_thresholds: numbers from 0 to 1.
        workers: threads that read, and as many that finish.
        on_progress: receives a record after each image.

    Raises:
        ConfigError: thresholds are outside of 0 to 1 or missing, or the model is not panoptic.
        M2FError: no image could be evaluated.
    """
    own = _own_pair(segmenter)
    grid = _grid(object_thresholds, overlap_thresholds, own)
    whole, *halves = (_Grid([PanopticQuality(segmenter.categories) for _ in grid]) for _ in range(3))
    count, failures = 0, []
    stream = scored(_Sweeping(segmenter, grid), records, {"grid": whole}, workers=workers)
    with closing(stream) as images:
        for done, image in enumerate(images, 1):
            if image.message is not None:
                failures.append(EvalFailure(image.name, image.message))
            else:
                for part in (whole, halves[count % 2]):
                    part.merge(image.parts["grid"])
                count += 1
            if on_progress is not None:
                on_progress(EvalProgress(image.name, done, image.message))
    if not count:
        raise nothing_evaluated(failures)
    pairs = [_pair(at, each) for at, each in zip(grid, whole.metrics, strict=True)]
    now = next((each for at, each in zip(grid, pairs, strict=True) if at == own), None)
    return Sweep(pairs, pairs[_best(whole.metrics)], now, _by_halves(*halves), count, failures)


def _grid(objects: Sequence[float], overlaps: Sequence[float], own: tuple[float, float] | None) -> list:
    if not objects or not overlaps or not all(0 <= value <= 1 for value in (*objects, *overlaps)):
        raise ConfigError(f"Thresholds are some numbers from 0 to 1, not {list(objects)} and {list(overlaps)}.")
    pairs = [(float(a), float(b)) for a in objects for b in overlaps]
    return list(dict.fromkeys(pairs if own is None else [*pairs, own]))


def _own_pair(segmenter: BaseSegmenter) -> tuple[float, float] | None:
    config = getattr(segmenter, "config", None)
    return None if config is None else (config.test.object_threshold, config.test.overlap_threshold)


def _pair(at: tuple[float, float], metric: PanopticQuality) -> Pair:
    figures = metric.compute()
    return Pair(*at, figures["pq"], figures["sq"], figures["rq"])


def _best(metrics: Sequence[PanopticQuality]) -> int:
    """Return the index of the highest PQ; NaN, where there is neither annotation nor result, is the lowest."""
    return max(range(len(metrics)), key=lambda i: _or_less(metrics[i].compute()["pq"]))


def _or_less(pq: float) -> float:
    return -1.0 if math.isnan(pq) else pq


def _by_halves(first: _Grid, second: _Grid) -> float:
    a, b = first.metrics, second.metrics
    return (a[_best(b)].compute()["pq"] + b[_best(a)].compute()["pq"]) / 2


@dataclass
class _Results:
    """Results of one image with each pair of thresholds.

    Each map is made when it is asked for, since a map of a large image takes much memory.
    """

    first: PanopticMap
    others: Iterator[PanopticMap]

    @property
    def size(self) -> tuple[int, int]:
        return self.first.size


class _Sweeping(Wrapper):
    """Segmenter that finishes each image with all pairs."""

    def __init__(self, inner: BaseSegmenter, grid: Sequence[tuple[float, float]]):
        super().__init__(inner)
        self.grid = grid

    def finish(self, raw: Any, task: Task | None = None) -> _Results:
        maps = (self.inner.finish(raw, task, object_threshold=a, overlap_threshold=b) for a, b in self.grid)
        return _Results(next(maps), maps)


class _Grid:
    """Metric that holds a PQ for each pair."""

    task = "panoptic"

    def __init__(self, metrics: list[PanopticQuality]):
        self.metrics = metrics

    def fresh(self) -> _Grid:
        return _Grid([metric.fresh() for metric in self.metrics])

    def merge(self, other: _Grid) -> None:
        for metric, part in zip(self.metrics, other.metrics, strict=True):
            metric.merge(part)

    def update(self, results: _Results, annotation: Annotation) -> None:
        for metric, result in zip(self.metrics, itertools.chain([results.first], results.others), strict=True):
            metric.update(result, annotation)

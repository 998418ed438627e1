"""A model against annotated images: each goes through the network once, whatever number of metrics looks at it.

The images go through a stream (`inference.stream`), and one more thread scores them in their order. An image is scored
alone, by empty metrics that are merged afterwards: so it counts in all metrics or in none, and what was counted can be
kept (`evaluation.run`). Only the images on their way are in memory, and what the metrics keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .. import plugins
from ..data.records import Record
from ..errors import DataError, M2FError
from ..inference.base import BaseSegmenter
from ..inference.stream import stream, thread_pool
from ..metrics import Figures, Metric
from ..metrics.comparable import check_sizes
from ..results.types import Result
from ..runtime import distributed as ranks
from ..runtime.threads import in_order
from ..structures import Task
from ..structures.annotations import Annotation
from ..structures.categories import Categories

Item = TypeVar("Item")
METRIC_OF: dict[Task, str] = {"panoptic": "pq", "instance": "ap", "semantic": "miou"}
NOT_FIGURES = ("per_class", "tables")  # what else `Metric.compute` may give


@dataclass(frozen=True)
class Annotations:
    """The annotations of one image where a data set has several: COCO's objects overlap, its segments do not.

    main: for the tasks that `others` does not have. In `others`, None says that the image does not count for a task.
    """

    main: Annotation
    others: Mapping[Task, Annotation | None]


def annotation_for(task: Task, annotation: Annotation | Annotations) -> Annotation | None:
    """The annotation that results of a task are compared with; None: the image does not count for it."""
    return annotation.others.get(task, annotation.main) if isinstance(annotation, Annotations) else annotation


@dataclass(frozen=True)
class EvalFailure:
    """An image that could not be evaluated, and why."""

    name: str
    message: str


@dataclass(frozen=True)
class EvalProgress:
    """What `on_progress` gets after each image, in their order, in the caller's thread."""

    name: str
    number: int  # of images so far, this one included
    message: str | None = None  # what went wrong, if anything


@dataclass
class EvalResult:
    """Figures of every metric by its name, in percent, and how the evaluation went.

    notes: what a person should know about what was compared.
    seconds: wall time; of several processes that of the slowest.
    """

    metrics: dict[str, Figures]
    seconds: float
    images: int
    failures: list[EvalFailure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """The figures of all metrics without their tables: {"pq": …, "sq": …, "ap": …}. Names are those of
        `Published.metric`; where two metrics have one, the metric's own name is put before it: "mine.pq"."""
        flat: dict[str, float] = {}
        for metric, found in self.metrics.items():
            for key, value in found.items():
                if key not in NOT_FIGURES:
                    flat[key if key not in flat else f"{metric}.{key}"] = value
        return flat

    def to_dict(self) -> dict[str, Any]:
        """For json: NaN, which says that there was nothing to measure, is None."""
        failures = [{"name": each.name, "message": each.message} for each in self.failures]
        found = {"metrics": without_nan(self.metrics), "seconds": self.seconds, "images": self.images}
        return {**found, "failures": failures}


def default_metrics(task: Task, categories: Categories, *, also: Sequence[Task] = ()) -> dict[str, Metric]:
    """The metric that a task is judged by, under its name in plugins.py, ready to count.

    Args:
        also: further tasks of the model: a panoptic one is published with ("instance", "semantic") too.
    """
    names = [METRIC_OF[each] for each in dict.fromkeys((task, *also))]
    return {name: plugins.get("metrics", name)(categories) for name in names}


def headline(task: Task) -> str:
    """The figure that says which of two models is better at a task: a key of `EvalResult.figures`; higher is better."""
    return METRIC_OF[task]


def evaluate(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    on_progress: Callable[[EvalProgress], None] | None = None,
    score_threshold: float = 0.0,
    workers: int = 2,
    distributed: bool = False,
    **thresholds: float | int | None,
) -> EvalResult:
    """Run a model over annotated images and compute metrics, as published: one image at a time.

    Args:
        records: annotated images; a sequence when `distributed`.
        metrics: name → metric, fresh, such as from `default_metrics`.
        score_threshold: least score of an instance; 0 keeps the published top k.
        workers: threads that read.
        distributed: every process of the torch.distributed group calls this with all records, evaluates its share
            and gets the figures of the whole, which are those of one process to the last bit. Without a group it
            changes nothing.
        thresholds: object_threshold, overlap_threshold, top_k, as in `Segmenter.finish`.

    An image that cannot be read or segmented, or whose annotation does not fit, is reported in the result and not
    counted.

    Raises:
        ConfigError: the model or the annotations do not have what a metric needs.
        M2FError: no image could be evaluated.
    """
    own = share(records, ranks.rank(), ranks.world_size()) if distributed else records
    options = {"score_threshold": score_threshold, **thresholds}
    measured = measure(segmenter, own, metrics, on_progress=on_progress, workers=workers, **options)
    return (gathered(measured) if distributed else measured).result()


# --- parts of an evaluation -------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What was counted over some of the images; parts merge, in the order of their images."""

    metrics: dict[str, Metric]
    seconds: float = 0.0
    images: int = 0
    failures: list[EvalFailure] = field(default_factory=list)

    def add(self, image: Scored) -> None:
        """Add one image, after those that are here."""
        if image.message is not None:
            self.failures.append(EvalFailure(image.name, image.message))
            return
        for name, part in image.parts.items():
            self.metrics[name].merge(part)
        self.images += 1

    def merge(self, other: Measured) -> None:
        """Add a part that another process measured at the same time, over later images."""
        for name, metric in self.metrics.items():
            metric.merge(other.metrics[name])
        self.seconds = max(self.seconds, other.seconds)
        self.images += other.images
        self.failures += other.failures

    def result(self) -> EvalResult:
        """Raises:
        M2FError: nothing was measured.
        """
        if not self.images:
            raise nothing_evaluated(self.failures)
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        return EvalResult(figures, self.seconds, self.images, self.failures)


def share(records: Sequence[Item], rank: int, count: int) -> Iterator[Item]:
    """The images of process `rank` of `count`: neighbours, so that merged parts keep the order of the images."""
    return (records[i] for i in range(len(records) * rank // count, len(records) * (rank + 1) // count))


def gathered(measured: Measured) -> Measured:
    """The parts of all processes of the torch.distributed group, merged, in every process; without a group, itself."""
    whole, *others = ranks.gather(measured)
    for part in others:
        whole.merge(part)
    return whole


def measure(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    on_progress: Callable[[EvalProgress], None] | None = None,
    workers: int = 2,
    **thresholds: float | int | None,
) -> Measured:
    """As `evaluate`, for a part of the images: the figures are not computed yet."""
    started = time.perf_counter()
    measured = Measured(dict(metrics))
    with closing(scored(segmenter, records, metrics, workers=workers, **thresholds)) as images:
        for number, each in enumerate(images, 1):
            measured.add(each)
            if on_progress is not None:
                on_progress(EvalProgress(each.name, number, each.message))
    measured.seconds = time.perf_counter() - started
    return measured


@dataclass(frozen=True)
class Scored:
    """One image, by every metric alone.

    seconds: from reading to scoring, without waiting. message: what went wrong; `parts` is empty then.
    saved: what `on_results` gave.
    """

    name: str
    seconds: float
    parts: Mapping[str, Metric]
    message: str | None = None
    saved: Any = None


OnResults: TypeAlias = Callable[[Record, Mapping[Task, Result]], Any]


def scored(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    workers: int = 2,
    on_results: OnResults | None = None,
    **thresholds: float | int | None,
) -> Iterator[Scored]:
    """Score image by image, in their order; the network runs in the caller's thread. Close what is not used up.

    Args:
        metrics: name → metric; they stay as they are, each image gets a fresh one.
        workers: threads that read, and as many that finish.
        on_results: called in threads with each image's results by task, which know their image then.

    Raises:
        ConfigError: the model or the annotations do not have what a metric needs.
    """
    tasks = [segmenter.check_task(task) for task in dict.fromkeys(metric.task for metric in metrics.values())]

    def read(record: Record) -> tuple[np.ndarray, tuple[Annotation | Annotations, np.ndarray | None]]:
        annotation, image = record.read_annotation(), record.read_image()
        return image, (annotation, None if on_results is None else image)

    def finish(kept: tuple[Annotation | Annotations, np.ndarray | None], raw: Any) -> _Found:
        annotation, image = kept
        results = segmenter.finish_all(raw, tasks, **thresholds)
        for task, result in results.items():
            own = annotation_for(task, annotation)
            if own is not None:
                check_sizes(result, own)
            result.image = image
        return _Found(annotation, results)

    def hand_on(record: Record, found: _Found) -> _Found:
        if on_results is not None:
            for result in found.results.values():
                result.image_id = getattr(record, "image_id", None)
            found.saved = on_results(record, found.results)
            for result in found.results.values():
                result.image = None
        return found

    images = stream(segmenter, records, read, finish, hand_on, workers=workers)
    # One thread that scores: metrics need no locks.
    with thread_pool(1) as scorer, closing(images):
        yield from in_order(scorer, partial(_scored, metrics), images, 2)


@dataclass
class _Found:
    """What is known of one image before it is scored."""

    annotation: Annotation | Annotations
    results: dict[Task, Result]
    saved: Any = None


def _scored(metrics: Mapping[str, Metric], image: tuple[Record, Any, dict[str, float]]) -> Scored:
    record, found, stages = image
    seconds, started = sum(stages.values()) - stages.get("write", 0.0), time.perf_counter()
    if isinstance(found, M2FError):
        return Scored(record.name, seconds, {}, str(found))
    parts = {name: metric.fresh() for name, metric in metrics.items()}
    try:
        for name, metric in metrics.items():
            annotation = annotation_for(metric.task, found.annotation)
            if annotation is not None:
                parts[name].update(found.results[metric.task], annotation)
    except DataError as error:
        return Scored(record.name, seconds, {}, str(error), found.saved)
    return Scored(record.name, seconds + time.perf_counter() - started, parts, None, found.saved)


def nothing_evaluated(failures: list[EvalFailure]) -> M2FError:
    """Return the error of an evaluation that scored no image."""
    if not failures:
        return DataError("There are no images to evaluate.")
    first = failures[0]
    return M2FError(f"None of {len(failures)} images could be evaluated. The first, {first.name}: {first.message}")


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value

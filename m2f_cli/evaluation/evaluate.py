"""Evaluation of a model on annotated images: each image goes through the network once, for any number of metrics.

The images go through a stream (`inference.stream`), and one more thread scores them in their order. An image is scored
alone, by empty metrics that are merged afterwards. So it counts in all metrics or in none, and its counts can be kept
(`evaluation.run`). Only the images on their way are in memory, and the states of the metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .. import plugins
from ..data.records import Record
from ..errors import DataError, M2FError
from ..inference.base import BaseSegmenter
from ..inference.stream import Job, Streamer, stream, thread_pool
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
NOT_FIGURES = ("per_class", "tables")  # further keys of `Metric.compute`


@dataclass(frozen=True)
class Annotations:
    """Annotations of one image where a data set has several: COCO's objects overlap, its segments do not.

    Attributes:
        main: the annotation for the tasks that `others` does not have.
        others: the annotations of further tasks; None says that the image does not count for a task.
    """

    main: Annotation
    others: Mapping[Task, Annotation | None]


def annotation_for(task: Task, annotation: Annotation | Annotations) -> Annotation | None:
    """Return the annotation that results of a task are compared with; None if the image does not count for the task."""
    return annotation.others.get(task, annotation.main) if isinstance(annotation, Annotations) else annotation


@dataclass(frozen=True)
class EvalFailure:
    """Image that could not be evaluated, and the reason."""

    name: str
    message: str


@dataclass(frozen=True)
class EvalProgress:
    """Record that `on_progress` receives after each image, in their order, in the caller's thread.

    Attributes:
        name: the name of the image.
        number: number of images so far, this one included.
        message: the error, if there was one.
    """

    name: str
    number: int
    message: str | None = None


@dataclass
class EvalResult:
    """Result of an evaluation.

    Attributes:
        metrics: the figures of every metric by its name, in percent.
        seconds: wall time; of several processes that of the slowest.
        images: number of images that were scored.
        failures: images that could not be evaluated.
        notes: remarks for people about what was compared.
    """

    metrics: dict[str, Figures]
    seconds: float
    images: int
    failures: list[EvalFailure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Figures of all metrics without their tables: {"pq": …, "sq": …, "ap": …}.

        Names are those of `Published.metric`. Where two metrics share a name, the metric's own name is put before it:
        "mine.pq".
        """
        return _flat(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in which NaN (nothing to measure) is None."""
        failures = [{"name": each.name, "message": each.message} for each in self.failures]
        return {
            "metrics": without_nan(self.metrics),
            "seconds": self.seconds,
            "images": self.images,
            "failures": failures,
        }


def _flat(metrics: Mapping[str, Figures]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for metric, figures in metrics.items():
        for key, value in figures.items():
            if key not in NOT_FIGURES:
                flat[key if key not in flat else f"{metric}.{key}"] = value
    return flat


def figures_of(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the names of the figures that an evaluation with these metrics gives; see `EvalResult.figures`."""
    return list(_flat({name: metric.fresh().compute() for name, metric in metrics.items()}))


def default_metrics(task: Task, categories: Categories, *, also: Sequence[Task] = ()) -> dict[str, Metric]:
    """Return the metric that a task is judged by, under its name in plugins.py, ready to count.

    Args:
        task: the task.
        categories: the classes.
        also: further tasks of the model: a panoptic model is published with ("instance", "semantic") too.
    """
    names = [METRIC_OF[each] for each in dict.fromkeys((task, *also))]
    return {name: plugins.get("metrics", name)(categories) for name in names}


def headline(task: Task) -> str:
    """Return the figure that says which of two models is better at a task.

    It is a key of `EvalResult.figures`; higher is better.
    """
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

    An image that cannot be read or segmented, or whose annotation does not fit, is reported in the result and not
    counted.

    Args:
        segmenter: the model.
        records: annotated images; a sequence when `distributed`.
        metrics: name → metric, fresh, such as from `default_metrics`.
        on_progress: receives a record after each image.
        score_threshold: least score of an instance; 0 keeps the published top k.
        workers: threads that read.
        distributed: share the images among the processes of the torch.distributed group. Every process calls this
            function with all records, and gets the figures of the whole, which are those of one process to the last
            bit. Without a group it changes nothing.
        thresholds: object_threshold, overlap_threshold, top_k, as in `Segmenter.finish`.

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
    """Counts over some of the images. Parts merge, in the order of their images.

    Attributes:
        metrics: the metrics by their names.
        seconds: wall time; of merged parts that of the slowest.
        images: number of images that were scored.
        failures: images that could not be evaluated.
    """

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
        """Compute the figures.

        Raises:
            M2FError: nothing was measured.
        """
        if not self.images:
            raise nothing_evaluated(self.failures)
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        return EvalResult(figures, self.seconds, self.images, self.failures)


def share(records: Sequence[Item], rank: int, count: int) -> Iterator[Item]:
    """Return the images of process `rank` of `count`.

    They are neighbours, so that merged parts keep the order of the images.
    """
    return (records[i] for i in range(len(records) * rank // count, len(records) * (rank + 1) // count))


def gathered(measured: Measured) -> Measured:
    """Merge the parts of all processes of the torch.distributed group, in every process.

    Without a group, the part itself is returned.
    """
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
    """Count some of the images as `evaluate` does, without computing figures."""
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
    """Scores of one image, by every metric alone.

    Attributes:
        name: the name of the image.
        seconds: time from reading to scoring, without waiting.
        parts: the metrics by their names; empty after an error.
        message: the error, if there was one.
        saved: the return value of `on_results`.
    """

    name: str
    seconds: float
    parts: Mapping[str, Metric]
    message: str | None = None
    saved: Any = None


OnResults: TypeAlias = Callable[[Record, Mapping[Task, Result], Annotation | Annotations], Any]


def scored(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    workers: int = 2,
    on_results: OnResults | None = None,
    streamer: Streamer = stream,
    **thresholds: float | int | None,
) -> Iterator[Scored]:
    """Score image by image, in their order; the network runs in the caller's thread.

    Close the iterator if it is not used up.

    Args:
        segmenter: the model.
        records: annotated images.
        metrics: name → metric. They stay as they are: each image gets a fresh one.
        workers: threads that read, and as many that finish.
        on_results: called in threads with each image's record, its results by task, which know their image then, and
            its annotation.
        streamer: what sends the images through the model; by default this process alone.
        thresholds: as in `Segmenter.finish`.

    Raises:
        ConfigError: the model or the annotations do not have what a metric needs.
    """
    tasks = [segmenter.check_task(task) for task in dict.fromkeys(metric.task for metric in metrics.values())]

    if streamer is not stream:  # where an image is finished it is scored, too: its counts are smaller than its results
        job = ScoringJob(tasks, thresholds, on_results, metrics)
        with closing(streamer(segmenter, records, job, workers=workers)) as images:
            yield from map(_answer, images)
        return
    images = stream(segmenter, records, EvalJob(tasks, thresholds, on_results), workers=workers)
    # A single thread scores, so that metrics need no locks.
    with thread_pool(1) as scorer, closing(images):
        yield from in_order(scorer, partial(_scored, metrics), images, 2)


@dataclass
class _Unscored:
    """Annotation and results of one image before it is scored."""

    annotation: Annotation | Annotations
    results: dict[Task, Result]
    saved: Any = None


@dataclass(frozen=True)
class EvalJob(Job[Record, Any]):
    """Reading of annotated images, and what is done with their results before they are scored.

    Attributes:
        tasks: the tasks that are measured.
        thresholds: as in `Segmenter.finish`.
        on_results: as in `scored`.
    """

    tasks: Sequence[Task]
    thresholds: Mapping[str, float | int | None]
    on_results: OnResults | None = None

    def read(self, item: Record) -> tuple[np.ndarray, tuple[Annotation | Annotations, np.ndarray | None]]:
        annotation, image = item.read_annotation(), item.read_image()
        return image, (annotation, None if self.on_results is None else image)

    def finish(
        self, segmenter: BaseSegmenter, kept: tuple[Annotation | Annotations, np.ndarray | None], raw: Any
    ) -> _Unscored:
        annotation, image = kept
        results = segmenter.finish_all(raw, self.tasks, **self.thresholds)
        for task, result in results.items():
            own = annotation_for(task, annotation)
            if own is not None:
                check_sizes(result, own)
            result.image = image
        return _Unscored(annotation, results)

    def use(self, item: Record, results: _Unscored) -> Any:
        if self.on_results is not None:
            for result in results.results.values():
                result.image_id = getattr(item, "image_id", None)
            results.saved = self.on_results(item, results.results, results.annotation)
            for result in results.results.values():
                result.image = None
        return results


@dataclass(frozen=True)
class ScoringJob(EvalJob):
    """A job whose outcome are the scores of an image: for streams through other processes.

    Attributes:
        metrics: as in `scored`.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def use(self, item: Record, results: _Unscored) -> Scored:
        return _scored(self.metrics, (item, super().use(item, results), {}))

    def threads(self, segmenter: BaseSegmenter, workers: int) -> int:
        """Return no threads: metrics have no locks, and there are several processes."""
        return 0


def _answer(image: tuple[Record, Any, dict[str, float]]) -> Scored:
    _, outcome, stages = image
    if isinstance(outcome, M2FError):
        return _scored({}, image)
    return replace(outcome, seconds=outcome.seconds + sum(stages.values()) - stages.get("write", 0.0))


def _scored(metrics: Mapping[str, Metric], image: tuple[Record, Any, dict[str, float]]) -> Scored:
    record, unscored, stages = image
    seconds, started = sum(stages.values()) - stages.get("write", 0.0), time.perf_counter()
    if isinstance(unscored, M2FError):
        return Scored(record.name, seconds, {}, str(unscored))
    parts = {name: metric.fresh() for name, metric in metrics.items()}
    try:
        for name, metric in metrics.items():
            annotation = annotation_for(metric.task, unscored.annotation)
            if annotation is not None:
                parts[name].update(unscored.results[metric.task], annotation)
    except DataError as error:
        return Scored(record.name, seconds, {}, str(error), unscored.saved)
    return Scored(record.name, seconds + time.perf_counter() - started, parts, None, unscored.saved)


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

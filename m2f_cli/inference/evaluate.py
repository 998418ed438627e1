"""A model against annotated pictures: each goes through the network once, whatever number of metrics looks at it.

Pictures are read and prepared in threads, the network runs in the caller's thread, and one more thread finishes the
results and counts them in the order of the pictures. Only the pictures on their way are in memory, and what the
metrics keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch.distributed as dist

from .. import plugins
from ..errors import DataError, M2FError
from ..metrics import Figures, Metric
from ..metrics.convert import check_sizes
from ..types import Categories, Task, Truth
from .pipeline import in_order, thread_pool

Item = TypeVar("Item")
METRIC_OF: dict[Task, str] = {"panoptic": "pq", "instance": "ap", "semantic": "miou"}


class Record(Protocol):
    """One annotated picture of a data set."""

    name: str

    def read_image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""

    def read_truth(self) -> Truth: ...


@dataclass(frozen=True)
class Failure:
    """A picture that could not be evaluated, and why."""

    name: str
    message: str


@dataclass(frozen=True)
class Progress:
    """What `on_progress` gets after each picture, in their order, in the caller's thread."""

    name: str
    number: int  # of pictures so far, this one included
    message: str | None = None  # what went wrong, if anything


@dataclass
class EvalResult:
    """Figures of every metric by its name, in percent, and how the evaluation went.

    seconds: wall time; of several processes that of the slowest.
    """

    metrics: dict[str, Figures]
    seconds: float
    images: int
    failures: list[Failure] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """The figures of all metrics without the tables: {"pq": …, "sq": …, "ap": …}. Names are those of
        `Published.metric`; where two metrics have one, the metric's own name is put before it: "mine.pq"."""
        flat: dict[str, float] = {}
        for metric, found in self.metrics.items():
            for key, value in found.items():
                if key != "per_class":
                    flat[key if key not in flat else f"{metric}.{key}"] = value
        return flat

    def to_dict(self) -> dict[str, Any]:
        """For json: NaN, which says that there was nothing to measure, is None."""
        failures = [{"name": each.name, "message": each.message} for each in self.failures]
        found = {"metrics": _without_nan(self.metrics), "seconds": self.seconds, "images": self.images}
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
    segmenter: Any, records: Iterable[Record], metrics: Mapping[str, Metric], *,
    on_progress: Callable[[Progress], None] | None = None, score_threshold: float = 0.0, workers: int = 2,
    distributed: bool = False, **thresholds: float | int | None,
) -> EvalResult:
    """Run a model over annotated pictures and compute metrics, as published: one picture at a time.

    Args:
        segmenter: a `Segmenter`.
        records: annotated pictures; a sequence when `distributed`.
        metrics: name → metric, fresh, such as from `default_metrics`.
        score_threshold: least score of an instance; 0 keeps the published top k.
        workers: threads that read.
        distributed: every process of the torch.distributed group calls this with all records, evaluates its share
            and gets the figures of the whole, which are those of one process to the last bit. Without a group it
            changes nothing.
        thresholds: object_threshold, overlap_threshold, top_k, as in `Segmenter.finish`.

    A picture that cannot be read or segmented, or whose annotation has another size, is reported in the result and
    not counted. An error in a metric ends the evaluation: figures over half-counted pictures would be wrong.

    Raises:
        ConfigError: the model does not do what a metric needs.
        M2FError: no picture could be evaluated.
    """
    rank, count = (dist.get_rank(), dist.get_world_size()) if distributed and _has_group() else (0, 1)
    own = records if count == 1 else share(records, rank, count)
    options = {"score_threshold": score_threshold, **thresholds}
    measured = measure(segmenter, own, metrics, on_progress=on_progress, workers=workers, **options)
    return (gathered(measured) if distributed else measured).result()


# --- parts of an evaluation -------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What was counted over some of the pictures; parts merge, in the order of their pictures."""

    metrics: dict[str, Metric]
    seconds: float = 0.0
    images: int = 0
    failures: list[Failure] = field(default_factory=list)

    def merge(self, other: Measured) -> None:
        """Add a part that another process measured at the same time, over later pictures."""
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
            raise _nothing(self.failures)
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        return EvalResult(figures, self.seconds, self.images, self.failures)


def share(records: Sequence[Item], rank: int, count: int) -> Iterator[Item]:
    """The pictures of process `rank` of `count`: neighbours, so that merged parts keep the order of the pictures."""
    return (records[i] for i in range(len(records) * rank // count, len(records) * (rank + 1) // count))


def gathered(measured: Measured) -> Measured:
    """The parts of all processes of the torch.distributed group, merged, in every process; without a group, itself."""
    if not _has_group():
        return measured
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, measured)
    whole, *others = parts
    for part in others:
        whole.merge(part)
    return whole


def measure(
    segmenter: Any, records: Iterable[Record], metrics: Mapping[str, Metric], *,
    on_progress: Callable[[Progress], None] | None = None, workers: int = 2, **thresholds: float | int | None,
) -> Measured:
    """As `evaluate`, for a part of the pictures: the figures are not computed yet."""
    tasks = [segmenter.check_task(task) for task in dict.fromkeys(metric.task for metric in metrics.values())]
    started = time.perf_counter()
    measured = Measured(dict(metrics))
    run = _Run(segmenter, tasks, thresholds, measured)
    jobs = (_Job(record) for record in records)
    # One thread that counts: metrics need no locks, and see the pictures in their order.
    with thread_pool(workers) as readers, thread_pool(1) as counter:
        answered = map(run.infer, in_order(readers, run.load, jobs, workers + 1))
        for number, job in enumerate(in_order(counter, run.count, answered, 2), 1):
            message = None if job.error is None else str(job.error)
            if on_progress is not None:
                on_progress(Progress(job.record.name, number, message))
    measured.seconds = time.perf_counter() - started
    return measured


@dataclass
class _Job:
    """One picture on its way."""

    record: Record
    error: M2FError | None = None
    truth: Truth | None = None
    prepared: Any = None
    raw: Any = None


@dataclass
class _Run:
    segmenter: Any
    tasks: list[Task]
    thresholds: dict[str, Any]
    measured: Measured

    def load(self, job: _Job) -> _Job:
        try:
            job.truth = job.record.read_truth()
            job.prepared = self.segmenter.prepare(job.record.read_image())
        except M2FError as error:
            job.error = error
        return job

    def infer(self, job: _Job) -> _Job:
        if job.error is None:
            try:
                [job.raw] = self.segmenter.infer([job.prepared])
            except M2FError as error:
                job.error = error
        job.prepared = None
        return job

    def count(self, job: _Job) -> _Job:
        results = self._finish(job) if job.error is None else {}
        if job.error is None:
            for metric in self.measured.metrics.values():
                metric.update(results[metric.task], job.truth)
            self.measured.images += 1
        else:
            self.measured.failures.append(Failure(job.record.name, str(job.error)))
        job.raw = job.truth = None
        return job

    def _finish(self, job: _Job) -> dict[Task, Any]:
        try:
            results = {task: self.segmenter.finish(job.raw, task, **self.thresholds) for task in self.tasks}
            for result in results.values():
                check_sizes(result, job.truth)
        except M2FError as error:
            job.error = error
            return {}
        return results


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _nothing(failures: list[Failure]) -> M2FError:
    if not failures:
        return DataError("There are no pictures to evaluate.")
    first = failures[0]
    return M2FError(f"None of {len(failures)} pictures could be evaluated. The first, {first.name}: {first.message}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

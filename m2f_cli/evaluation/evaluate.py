"""A model against annotated pictures: each goes through the network once, whatever number of metrics looks at it.

Pictures are read and prepared in threads, the network runs in the caller's thread, threads finish the results, and one
more scores them in the order of the pictures. A picture is scored alone, by empty metrics that are merged afterwards:
so a picture counts in all metrics or in none, and what was counted can be kept (`eval_run`). Only the pictures on
their way are in memory, and what the metrics keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .. import plugins
from ..data.records import Record
from ..errors import DataError, M2FError
from ..inference.pipeline import in_order, thread_pool
from ..metrics import Figures, Metric
from ..metrics.comparable import check_sizes
from ..results.types import Result
from ..runtime import distributed as ranks
from ..structures import Task
from ..structures.annotations import Truth
from ..structures.categories import Categories

Item = TypeVar("Item")
METRIC_OF: dict[Task, str] = {"panoptic": "pq", "instance": "ap", "semantic": "miou"}
NOT_FIGURES = ("per_class", "tables")  # what else `Metric.compute` may give


@dataclass(frozen=True)
class Truths:
    """The annotations of one picture where a data set has several: COCO's objects overlap, its segments do not.

    main: for the tasks that `others` does not have. In `others`, None says that the picture does not count for a task.
    """

    main: Truth
    others: Mapping[Task, Truth | None]


def truth_for(task: Task, truth: Truth | Truths) -> Truth | None:
    """The annotation that results of a task are compared with; None: the picture does not count for it."""
    return truth.others.get(task, truth.main) if isinstance(truth, Truths) else truth


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

    notes: what a person should know about what was compared.
    seconds: wall time; of several processes that of the slowest.
    """

    metrics: dict[str, Figures]
    seconds: float
    images: int
    failures: list[Failure] = field(default_factory=list)
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
    segmenter: Any,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    score_threshold: float = 0.0,
    workers: int = 2,
    distributed: bool = False,
    **thresholds: float | int | None,
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

    A picture that cannot be read or segmented, or whose annotation does not fit, is reported in the result and not
    counted.

    Raises:
        ConfigError: the model or the annotations do not have what a metric needs.
        M2FError: no picture could be evaluated.
    """
    own = share(records, ranks.rank(), ranks.world_size()) if distributed else records
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

    def add(self, picture: Scored) -> None:
        """Add one picture, after those that are here."""
        if picture.message is not None:
            self.failures.append(Failure(picture.name, picture.message))
            return
        for name, part in picture.parts.items():
            self.metrics[name].merge(part)
        self.images += 1

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
    whole, *others = ranks.gather(measured)
    for part in others:
        whole.merge(part)
    return whole


def measure(
    segmenter: Any,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    on_progress: Callable[[Progress], None] | None = None,
    workers: int = 2,
    **thresholds: float | int | None,
) -> Measured:
    """As `evaluate`, for a part of the pictures: the figures are not computed yet."""
    started = time.perf_counter()
    measured = Measured(dict(metrics))
    with closing(scored(segmenter, records, metrics, workers=workers, **thresholds)) as pictures:
        for number, each in enumerate(pictures, 1):
            measured.add(each)
            if on_progress is not None:
                on_progress(Progress(each.name, number, each.message))
    measured.seconds = time.perf_counter() - started
    return measured


@dataclass(frozen=True)
class Scored:
    """One picture, by every metric alone.

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
    segmenter: Any,
    records: Iterable[Record],
    metrics: Mapping[str, Metric],
    *,
    workers: int = 2,
    on_results: OnResults | None = None,
    **thresholds: float | int | None,
) -> Iterator[Scored]:
    """Score picture by picture, in their order; the network runs in the caller's thread. Close what is not used up.

    Args:
        metrics: name → metric; they stay as they are, each picture gets a fresh one.
        workers: threads that read, and as many that finish.
        on_results: called in threads with each picture's results by task, which know their picture then.

    Raises:
        ConfigError: the model or the annotations do not have what a metric needs.
    """
    tasks = [segmenter.check_task(task) for task in dict.fromkeys(metric.task for metric in metrics.values())]
    run = _Run(segmenter, tasks, thresholds, metrics, on_results)
    jobs = (_Job(record) for record in records)
    # One thread that counts: metrics need no locks.
    with thread_pool(workers) as readers, thread_pool(workers) as finishers, thread_pool(1) as counter:
        answered = map(run.infer, in_order(readers, run.load, jobs, workers + 1))
        finished = in_order(finishers, run.finish, answered, workers + 1)
        for job in in_order(counter, run.count, finished, 2):
            message = None if job.error is None else str(job.error)
            yield Scored(job.record.name, job.seconds, job.parts, message, job.saved)


@dataclass
class _Job:
    """One picture on its way. What is no longer needed is dropped at once: pictures are large."""

    record: Record
    error: M2FError | None = None
    truth: Truth | Truths | None = None
    image: np.ndarray | None = None
    prepared: Any = None
    raw: Any = None
    results: dict[Task, Result] = field(default_factory=dict)
    parts: dict[str, Metric] = field(default_factory=dict)
    saved: Any = None
    seconds: float = 0.0

    @contextmanager
    def step(self, expected: type[M2FError] = M2FError) -> Iterator[None]:
        """Measure the time, and keep an expected error: it is the picture's own."""
        started = time.perf_counter()
        try:
            yield
        except expected as error:
            self.error = error
            self.truth = self.image = self.prepared = self.raw = None
        self.seconds += time.perf_counter() - started


@dataclass
class _Run:
    segmenter: Any
    tasks: list[Task]
    thresholds: dict[str, Any]
    metrics: Mapping[str, Metric]
    on_results: OnResults | None

    def load(self, job: _Job) -> _Job:
        with job.step():
            job.truth = job.record.read_truth()
            image = job.record.read_image()
            job.prepared = self.segmenter.prepare(image)
            job.image = None if self.on_results is None else image
        return job

    def infer(self, job: _Job) -> _Job:
        if job.error is None:
            with job.step():
                [job.raw] = self.segmenter.infer([job.prepared])
            job.prepared = None
        return job

    def finish(self, job: _Job) -> _Job:
        if job.error is None:
            with job.step():
                results = {task: self.segmenter.finish(job.raw, task, **self.thresholds) for task in self.tasks}
                self._check(results, job.truth)
                job.results = results
            job.raw = None
        if job.error is None and self.on_results is not None:
            self._hand_on(job)
        return job

    def _check(self, results: Mapping[Task, Result], truth: Truth | Truths) -> None:
        for task, result in results.items():
            own = truth_for(task, truth)
            if own is not None:
                check_sizes(result, own)

    def _hand_on(self, job: _Job) -> None:
        """Errors here are not the picture's: what cannot be written ends the evaluation."""
        for result in job.results.values():
            result.image, result.image_id = job.image, getattr(job.record, "image_id", None)
        job.saved = self.on_results(job.record, job.results)
        for result in job.results.values():
            result.image = None
        job.image = None

    def count(self, job: _Job) -> _Job:
        if job.error is None:
            with job.step(DataError):
                job.parts = {name: self._part(metric, job) for name, metric in self.metrics.items()}
        job.truth, job.results = None, {}
        return job

    def _part(self, metric: Metric, job: _Job) -> Metric:
        part, truth = metric.fresh(), truth_for(metric.task, job.truth)
        if truth is not None:
            part.update(job.results[metric.task], truth)
        return part


def _nothing(failures: list[Failure]) -> M2FError:
    if not failures:
        return DataError("There are no pictures to evaluate.")
    first = failures[0]
    return M2FError(f"None of {len(failures)} pictures could be evaluated. The first, {first.name}: {first.message}")


def without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value

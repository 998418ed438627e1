"""Many pictures: read and prepared in threads, the network in the main thread, finished and written in threads.

Where the network runs on the CPU everything happens in the main thread: the network has all cores, and threads beside
it make each of its steps wait for the slowest core (measured with 2 cores: 7 % longer).

Two sliding windows over one chain of generators keep the order of the sources and bound the memory: a stage takes a
new picture only when its oldest one has been handed on. Nothing waits for anything later in the chain, so nothing can
lock up, and an error or Ctrl-C unwinds the chain from wherever it happens.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, M2FError
from ..results.places import Places
from ..results.types import Instances, PanopticMap, Result, SemanticMap
from ..results.writers import SCHEMA_VERSION, Writer, listed, stem_for, writers_for
from ..runtime.files import remove_parts
from ..runtime.locks import locked
from ..structures import Task
from ..structures.images import read_picture
from .journal import SHARED, Journal, assemble, check_folder, erase
from .sources import Source

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Failure:
    """A picture that could not be done, and why."""

    file: Path
    message: str


@dataclass(frozen=True)
class Progress:
    """What `on_progress` gets after each picture, in the order of the sources, in the caller's thread."""

    file: Path
    state: Literal["done", "skipped", "failed"]
    message: str | None = None


@dataclass
class Summary:
    """How a run went: numbers of pictures, what failed, and the time that it took."""

    done: int = 0
    skipped: int = 0
    failed: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Job:
    """One picture on its way. What is no longer needed is dropped at once: pictures are large."""

    source: Source
    skipped: bool = False
    error: M2FError | None = None
    image: np.ndarray | None = None
    prepared: Any = None
    raw: Any = None
    entry: dict[str, Any] | None = None
    times_ms: dict[str, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.skipped or self.error is not None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.times_ms[stage] = round(1000 * (time.perf_counter() - started), 3)


def predict(
    segmenter: Any,
    sources: Iterable[Source],
    task: Task | None,
    out: Path,
    formats: Sequence[str],
    *,
    batch: int = 1,
    workers: int = 2,
    skip_existing: bool = False,
    overwrite: bool = False,
    thresholds: dict[str, float | int | None] | None = None,
    model: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    trust_code: bool = False,
) -> Summary:
    """Segment pictures and write the results below `out`, with predictions.json about all of them.

    Args:
        segmenter: a `Segmenter`.
        sources: the pictures, from `sources.expand`.
        task: panoptic, instance or semantic; None is the model's own.
        formats: names of writers; see output.py for the layout.
        batch: pictures per forward pass.
        workers: threads that read, and as many that write, beside a network on a GPU.
        skip_existing: go on with an earlier run into `out`: finished pictures keep their files and records.
        overwrite: remove what an earlier run wrote to `out` first.
        thresholds: object_threshold, overlap_threshold, score_threshold, top_k; None leaves the model's own.
        model: how the model is called in predictions.json; its source by default.
        trust_code: whether `formats` may be "module:function", as what a user typed may.

    A picture that cannot be read or segmented is reported in the summary and the rest go on. After Ctrl-C
    predictions.json holds what was finished.

    Raises:
        ConfigError: a task or format that does not fit, or an output folder that is in use, also by another process.
        M2FError: a file cannot be written; what was finished stays, and skip_existing goes on from there.
    """
    task = segmenter.check_task(task or segmenter.default_task)
    writers = writers_for(formats, task, trust_code=trust_code)
    if batch < 1 or workers < 1:
        raise ConfigError(f"batch and workers are at least 1, not {batch} and {workers}.")
    thresholds = {key: value for key, value in (thresholds or {}).items() if value is not None}
    check_folder(out, skip_existing=skip_existing, overwrite=overwrite)
    places = Places(out, formats)
    is_known = isinstance(sources, Sequence)  # else they come one by one, as from a list on stdin
    sources = places.claimed(sources, "path")
    sources = list(sources) if is_known else sources
    head = {
        "schema_version": SCHEMA_VERSION,
        "model": model or segmenter.source,
        "task": task,
        "formats": list(writers),
        "thresholds": thresholds,
    }
    with locked(out, "A prediction"):
        check_folder(out, skip_existing=skip_existing, overwrite=overwrite)  # another process may have been first
        remove_parts(out)
        if overwrite:
            erase(out, spared=[source.path for source in sources] if is_known else ())
        with Journal(out, head) as journal:
            run = _Run(segmenter, task, out, writers, thresholds, batch, workers)
            return run(sources, journal, on_progress or (lambda progress: None))


@dataclass
class _Run:
    segmenter: Any
    task: Task
    out: Path
    writers: dict[str, Writer]
    thresholds: dict[str, Any]
    batch: int
    workers: int

    def __call__(self, sources: Iterable[Source], journal: Journal, on_progress: Callable[[Progress], None]) -> Summary:
        started = time.perf_counter()
        names: list[str] = []
        summary = Summary()
        jobs = (_Job(each, skipped=journal.is_finished(each.name, str(each.path))) for each in sources)
        try:
            workers = 0 if self.segmenter.device.type == "cpu" else self.workers
            with thread_pool(workers) as readers, thread_pool(workers) as finishers:
                loaded = in_order(readers, self._load, jobs, self.workers + self.batch)
                answered = itertools.chain.from_iterable(map(self._infer, _batches(loaded, self.batch)))
                for job in in_order(finishers, self._finish, answered, self.workers + self.batch):
                    names.append(job.source.name)
                    if job.entry is not None:
                        journal.append(job.entry)
                    on_progress(_account(job, summary))
        except KeyboardInterrupt:
            assemble(journal, names, self.writers, self.segmenter.categories)
            raise
        assemble(journal, names, self.writers, self.segmenter.categories)
        summary.seconds = time.perf_counter() - started
        return summary

    def _load(self, job: _Job) -> _Job:
        if job.is_over:
            return job
        try:
            with job.timed("read"):
                job.image = read_picture(job.source.path)
            with job.timed("prepare"):
                job.prepared = self.segmenter.prepare(job.image)
        except M2FError as error:
            job.error, job.image = error, None
        return job

    def _infer(self, jobs: list[_Job]) -> list[_Job]:
        """Answer a batch. One that fails is tried again picture by picture: one cannot spoil the others."""
        waiting = [job for job in jobs if not job.is_over]
        started = time.perf_counter()
        try:
            raws = self.segmenter.infer([job.prepared for job in waiting]) if waiting else []
        except M2FError as error:
            if len(waiting) > 1:
                for job in waiting:
                    self._infer([job])
                return jobs
            waiting[0].error, waiting[0].image, waiting[0].prepared = error, None, None
            return jobs
        for job, raw in zip(waiting, raws, strict=True):
            job.raw, job.prepared = raw, None
            job.times_ms["network"] = round(1000 * (time.perf_counter() - started) / len(waiting), 3)
        return jobs

    def _finish(self, job: _Job) -> _Job:
        if job.skipped:
            return job
        if job.error is None:
            try:
                with job.timed("post_process"):
                    result = self.segmenter.finish(job.raw, self.task, **self.thresholds)
                result.image = job.image
                job.raw = job.image = None
            except M2FError as error:
                job.error, job.raw, job.image = error, None, None
        record: dict[str, Any] = {"name": job.source.name, "file": str(job.source.path)}
        if job.error is not None:
            job.entry = {"record": {**record, "error": str(job.error)}}
        else:
            job.entry = self._write(job, result, record)
        return job

    def _write(self, job: _Job, result: Result, record: dict[str, Any]) -> dict[str, Any]:
        name, files, shared = job.source.name, [], {}
        file_name = (Path(name).parent / job.source.path.name).as_posix()
        with job.timed("write"):
            for each, write in self.writers.items():
                own = SHARED[each].write if each in SHARED else write
                files += own(result, stem_for(self.out, each, name))
                if each in SHARED:
                    shared[each] = SHARED[each].entry(result, name, file_name)
        height, width = result.size
        record |= {"width": width, "height": height, **contents(result)}
        record["files"] = listed(files, self.out)
        return {"record": {**record, "times_ms": job.times_ms}, "shared": shared}


def contents(result: Result) -> dict[str, list[dict[str, Any]]]:
    """What is in a result, without its pixels: {"segments" | "instances" | "classes": [{"label", "area", …}]}."""
    named = [{"label": category.name, "category_id": category.id} for category in result.categories]
    if isinstance(result, PanopticMap):
        return {
            "segments": [
                {
                    "id": each.id,
                    **named[each.label],
                    "isthing": result.categories[each.label].isthing,
                    "score": round(float(each.score), 4),
                    "area": int(each.area),
                }
                for each in result.segments
            ]
        }
    if isinstance(result, Instances):
        return {
            "instances": [
                {**named[int(label)], "score": round(float(score), 4), "area": int(coco_mask.area(rle))}
                for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True)
            ]
        }
    if isinstance(result, SemanticMap):
        areas = np.bincount(result.labels_HW.ravel(), minlength=len(named))
        return {"classes": [{**named[i], "area": int(areas[i])} for i in range(len(named)) if areas[i]]}
    raise TypeError(f"{type(result).__name__} is no result of this package")


# --- the chain --------------------------------------------------------------------------------------------------------


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor | None]:
    """None without workers."""
    if not workers:
        yield None
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor | None, function: Callable[[In], Out], items: Iterable[In], depth: int
) -> Iterator[Out]:
    """`map(function, items)` in threads: in order, with at most `depth` items between taken and handed on. Without a
    pool: `map`."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(jobs: Iterable[_Job], count: int) -> Iterator[list[_Job]]:
    iterator = iter(jobs)
    while group := list(itertools.islice(iterator, count)):
        yield group


def _account(job: _Job, summary: Summary) -> Progress:
    if job.skipped:
        summary.skipped += 1
        return Progress(job.source.path, "skipped")
    if job.error is not None:
        summary.failed.append(Failure(job.source.path, str(job.error)))
        return Progress(job.source.path, "failed", str(job.error))
    summary.done += 1
    return Progress(job.source.path, "done")

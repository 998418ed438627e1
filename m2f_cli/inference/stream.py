"""Stream of images through a segmenter: read, prepare, infer and finish, overlapped and in order.

Images are read and finished in threads; the network runs in the caller's thread. The stages are a chain of generators.
Each takes a new image only when its oldest one has been passed on, which keeps the order and bounds the memory. No
stage waits for a later one, so the chain cannot deadlock. An error or Ctrl-C unwinds it from any stage.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import M2FError
from ..runtime.threads import in_order
from .base import BaseSegmenter

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")
Kept = TypeVar("Kept")
Results = TypeVar("Results")


def stream(
    segmenter: BaseSegmenter,
    items: Iterable[Item],
    read: Callable[[Item], tuple[np.ndarray, Kept] | None],
    finish: Callable[[Kept, Any], Results],
    use: Callable[[Item, Results], Out],
    *,
    batch: int = 1,
    workers: int = 2,
) -> Generator[tuple[Item, Out | M2FError | None, dict[str, float]], None, None]:
    """Yield each item with its outcome and the seconds of each stage, in the order of the items.

    An M2FError in `read`, in the network or in `finish` is the outcome of that image. Any other error, and each error
    in `use`, ends the stream. Close a stream that is not exhausted.

    Args:
        segmenter: the model.
        items: taken in the caller's thread, shortly before they are needed.
        read: returns the pixels (H, W, 3), uint8 RGB, and a value for `finish`. None: the item needs no work, and its
            outcome is None.
        finish: turns the value of `read` and the output of `infer` into results.
        use: uses the results, for example writes them. Its return value is the outcome.
        batch: images per forward pass. A batch that fails is tried again image by image.
        workers: threads that read, and as many that finish. 0: everything runs in the caller's thread.
    """
    with thread_pool(workers) as readers, thread_pool(workers) as finishers:

        def load(job: _Work[Item]) -> _Work[Item]:
            with job.stage("read"):
                job.kept = read(job.item)
                job.is_open = job.kept is not None
            if job.is_open:
                with job.stage("prepare"):
                    image, job.kept = job.kept
                    job.value = segmenter.prepare(image)
            return job

        def infer(jobs: list[_Work[Item]]) -> list[_Work[Item]]:
            waiting = [job for job in jobs if job.is_open]
            started = time.perf_counter()
            try:
                answers = segmenter.infer([job.value for job in waiting]) if waiting else []
            except M2FError as error:
                if len(waiting) == 1:
                    waiting[0].fail(error)
                else:
                    for job in waiting:
                        infer([job])
                return jobs
            for job, answer in zip(waiting, answers, strict=True):
                job.value = answer
                job.seconds["network"] = (time.perf_counter() - started) / len(waiting)
            return jobs

        def end(job: _Work[Item]) -> _Work[Item]:
            if job.is_open:
                with job.stage("post_process"):
                    job.value = finish(job.kept, job.value)
                    job.kept = None
            if job.is_open:
                started = time.perf_counter()
                job.value = use(job.item, job.value)
                job.seconds["write"] = time.perf_counter() - started
            return job

        loaded: Iterator[_Work[Item]] = in_order(readers, load, map(_Work, items), workers + batch)
        answered = itertools.chain.from_iterable(map(infer, _batches(loaded, batch)))
        ended: Iterator[_Work[Item]] = in_order(finishers, end, answered, workers + batch)
        for job in ended:
            yield job.item, job.value, job.seconds


@dataclass
class _Work(Generic[Item]):
    """State of an item in the stream.

    Attributes:
        item: the item.
        kept: value of `read` for `finish`.
        value: output of the last stage, or its error. Earlier values are dropped, because images are large.
        is_open: False when no more stages follow.
        seconds: duration of each stage.
    """

    item: Item
    kept: Any = None
    value: Any = None
    is_open: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the duration of a stage, and keep its error."""
        started = time.perf_counter()
        try:
            yield
        except M2FError as error:
            self.fail(error)
        self.seconds[name] = time.perf_counter() - started

    def fail(self, error: M2FError) -> None:
        self.value, self.kept, self.is_open = error, None, False


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor | None]:
    """Open a pool of threads that ends with the context; None for 0 workers."""
    if not workers:
        yield None
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(items: Iterable[In], count: int) -> Iterator[list[In]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, count)):
        yield group

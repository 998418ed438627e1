"""A stream of images through a segmenter: read, prepare, infer, finish, overlapped and in order.

Images are read and finished in threads, the network runs in the caller's thread. Sliding windows over a chain of
generators keep the order and bound the memory: a stage takes a new image only when its oldest one has been handed on.
Nothing waits for anything later in the chain, so nothing can lock up, and an error or Ctrl-C unwinds the chain from
wherever it happens.
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
    """Yield each item with what came of it and the seconds of each stage, in the order of the items.

    An M2FError in `read`, in the network or in `finish` is that image's own: it takes the place of the results. Any
    other error, and each error in `use`, ends the stream. Close a stream that is not used up.

    Args:
        items: taken in the caller's thread, and not long before they are needed.
        read: gives the pixels (H, W, 3, uint8 RGB) and what `finish` needs beside the network's answer. None: there is
            nothing to do for this item, and None is what comes of it.
        finish: makes results of what `read` kept and of what `infer` gave.
        use: writes the results, say; what it returns is yielded.
        batch: images per forward pass. A batch that fails is tried again image by image.
        workers: threads that read, and as many that finish. 0: everything happens in the caller's thread.
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
    """One item on its way.

    Attributes:
        value: what the last stage gave, or the error that ended it. Earlier values are dropped: images are large.
        is_open: False once nothing more is to be done for it.
    """

    item: Item
    kept: Any = None
    value: Any = None
    is_open: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage, and keep its error."""
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
    """A pool of threads that is empty when the context ends; None without workers."""
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

"""Stream of images through a segmenter: read, prepare, infer and finish, overlapped and in order.

Images are read and finished in threads; the network runs in the caller's thread. The stages are a chain of generators.
Each takes a new image only when its oldest one has been passed on, which keeps the order and bounds the memory. No
stage waits for a later one, so the chain cannot deadlock. An error or Ctrl-C unwinds it from any stage.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from ..errors import M2FError
from ..runtime.threads import in_order
from .base import BaseSegmenter

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")

Outcomes: TypeAlias = Generator[tuple[Item, Out | M2FError | None, dict[str, float]], None, None]


class Job(ABC, Generic[Item, Out]):
    """Work on each item of a stream, beside the network. It can be pickled, so that other processes can do it.

    All methods are called in any thread.
    """

    def is_done(self, item: Item) -> bool:
        """Return True if an item needs no work. Its outcome is None."""
        return False

    @abstractmethod
    def read(self, item: Item) -> tuple[np.ndarray, Any]:
        """Return the pixels (H, W, 3), uint8 RGB, and a value for `finish`."""

    @abstractmethod
    def finish(self, segmenter: BaseSegmenter, kept: Any, raw: Any) -> Any:
        """Turn the value of `read` and the output of `infer` into results."""

    @abstractmethod
    def use(self, item: Item, results: Any) -> Out:
        """Use the results, for example write them, and return the outcome."""

    def threads(self, segmenter: BaseSegmenter, workers: int) -> int:
        """Return the number of threads that work beside this segmenter, where `workers` were asked for."""
        return workers


class Streamer(Protocol):
    """Protocol of `stream`, and of its equals that work in several processes."""

    def __call__(
        self,
        segmenter: BaseSegmenter,
        items: Iterable[Item],
        job: Job[Item, Out],
        *,
        batch: int = 1,
        workers: int = 2,
    ) -> Outcomes[Item, Out]: ...


def stream(
    segmenter: BaseSegmenter,
    items: Iterable[Item],
    job: Job[Item, Out],
    *,
    batch: int = 1,
    workers: int = 2,
) -> Outcomes[Item, Out]:
    """Yield each item with its outcome and the seconds of each stage, in the order of the items.

    An M2FError in `read`, in the network or in `finish` is the outcome of that image. Any other error, and each error
    in `use`, ends the stream. Close a stream that is not exhausted.

    Args:
        segmenter: the model.
        items: taken in the caller's thread, shortly before they are needed.
        job: what is done with each item.
        batch: images per forward pass. A batch that fails is tried again image by image.
        workers: threads that read, and as many that finish. 0: everything runs in the caller's thread.
    """
    workers, stages = job.threads(segmenter, workers), _Stages(segmenter, job)
    with thread_pool(workers) as readers, thread_pool(workers) as finishers:
        loaded: Iterator[_Work[Item]] = in_order(readers, stages.load, map(_Work, items), workers + batch)
        answered = itertools.chain.from_iterable(map(stages.infer, batches(loaded, batch)))
        ended: Iterator[_Work[Item]] = in_order(finishers, stages.end, answered, workers + batch)
        for work in ended:
            yield work.item, work.value, work.seconds


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


@dataclass(frozen=True)
class _Stages(Generic[Item, Out]):
    """Stages of a stream: before the network, the network, and after it."""

    segmenter: BaseSegmenter
    job: Job[Item, Out]

    def load(self, work: _Work[Item]) -> _Work[Item]:
        if self.job.is_done(work.item):
            work.is_open = False
            return work
        with work.stage("read"):
            work.value, work.kept = self.job.read(work.item)
        if work.is_open:
            with work.stage("prepare"):
                work.value = self.segmenter.prepare(work.value)
        return work

    def infer(self, works: list[_Work[Item]]) -> list[_Work[Item]]:
        waiting = [work for work in works if work.is_open]
        started = time.perf_counter()
        try:
            answers = self.segmenter.infer([work.value for work in waiting]) if waiting else []
        except M2FError as error:
            if len(waiting) == 1:
                waiting[0].fail(error)
            else:
                for work in waiting:
                    self.infer([work])
            return works
        for work, answer in zip(waiting, answers, strict=True):
            work.value = answer
            work.seconds["network"] = (time.perf_counter() - started) / len(waiting)
        return works

    def end(self, work: _Work[Item]) -> _Work[Item]:
        if work.is_open:
            with work.stage("post_process"):
                work.value = self.job.finish(self.segmenter, work.kept, work.value)
                work.kept = None
        if work.is_open:
            started = time.perf_counter()
            work.value = self.job.use(work.item, work.value)
            work.seconds["write"] = time.perf_counter() - started
        return work


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


def batches(items: Iterable[In], count: int) -> Iterator[list[In]]:
    """Yield lists of `count` items; the last one has what is left."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, count)):
        yield group

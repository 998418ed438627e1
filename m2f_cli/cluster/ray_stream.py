"""Stream of images through a Ray cluster, on Ray Data.

Tasks read and prepare images. Actors hold the model: they run the network, finish and use the results, because outputs
of a network are much larger than results. Ray Data moves the images, holds back what is too fast, and repeats what was
lost. The driver takes each outcome once, in the order of the items. A result that is written twice is the same bytes.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import DataError, M2FError
from ..inference.base import BaseSegmenter, Wrapper
from ..inference.segmenter import Segmenter
from ..inference.stream import Item, Job, Out, Outcomes, stream
from ..runtime.threads import choose_threads
from ..structures.images import silence_pillow
from .backlog import Backlog
from .processes import Failure, failure_of
from .stages import Clock, StageUse

WAVE = 50_000  # items of one run of Ray Data; later ones are not taken before it ends
BLOCK, SHARES = 16, 4  # images of one task, at most; and in short runs, tasks of each actor, at least
LOSSES = 3  # of processes at one image, until that image has failed
READER_CPUS, GPU_READER_CPUS = 0.25, 1.0
MANY_CORES, GROUP = 8, 4  # a node with many cores gets an actor for each group
LOST = "Finished images stay, and --skip-existing goes on."


@dataclass(frozen=True)
class ClusterPlan:
    """Processes of a run.

    Attributes:
        actors: number of actors.
        readers: number of reading tasks at the same time, at most.
        actor: resources of each actor, as Ray names them.
        reader: resources of each reading task.
        threads: CPU threads of each actor.
        device: device of each actor.
    """

    actors: int
    readers: int
    actor: dict[str, float]
    reader: dict[str, float]
    threads: int
    device: str


def plan_for(nodes: Iterable[dict[str, float]], device: str) -> ClusterPlan:
    """Return one actor for each GPU; without GPUs one for each core, or for each group of cores where they are many.

    Args:
        nodes: resources of each node: {"CPU": …, "GPU": …}.
        device: "auto", or a kind of device.

    Raises:
        M2FError: the cluster has no such device.
    """
    nodes = list(nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    kind = device.partition(":")[0]
    if (kind == "cuda" and not gpus) or not any(cpus):
        raise M2FError(f"The Ray cluster has {sum(cpus)} CPUs and {gpus} GPUs.", hint="See `ray status`.")
    if gpus and kind in ("auto", "cuda"):
        readers = max(1, sum(cpus) - gpus)
        own = min(1.0, sum(cpus) / (2 * gpus))
        reader = {"num_cpus": min(GPU_READER_CPUS, sum(cpus) / 2)}
        return ClusterPlan(gpus, readers, {"num_gpus": 1, "num_cpus": own}, reader, 1, "cuda")
    group = GROUP if min(count for count in cpus if count) >= MANY_CORES else 1
    actors = sum(count // group for count in cpus)
    actor, reader = {"num_cpus": group - READER_CPUS}, {"num_cpus": READER_CPUS}
    return ClusterPlan(actors, actors, actor, reader, group, "cpu" if kind == "auto" else kind)


@dataclass
class RayStream:
    """Streamer of a Ray cluster.

    Attributes:
        ray: the module, connected.
        opener: opens the model on a device; it is called in each actor.
        device: as in `plan_for`.
        wave: items of one run of Ray Data.
        stages: use of the stages, after a stream.
    """

    ray: Any
    opener: Callable[[str], BaseSegmenter]
    device: str = "auto"
    wave: int = WAVE
    stages: list[StageUse] = field(default_factory=list)

    def __call__(
        self,
        segmenter: BaseSegmenter,
        items: Iterable[Item],
        job: Job[Item, Out],
        *,
        batch: int = 1,
        workers: int = 2,
    ) -> Outcomes[Item, Out]:
        """Yield what `stream` yields. The segmenter itself does nothing but name the steps before the network.

        Images of one shape go into a batch together.

        Raises:
            M2FError: the cluster has lost processes again and again, or a process cannot open the model.
        """
        plan = plan_for([node["Resources"] for node in self.ray.nodes() if node["Alive"]], self.device)
        tries = self.ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
        care = _Care(tries, os.getcwd())
        reader = _Reader(job, _preparer(segmenter), care)
        worker = (self.opener, plan.device, plan.threads, job, batch, workers, care)
        started, clock = 0.0, Clock()
        source = enumerate(items)
        backlog: Backlog[Item] = Backlog()
        while True:
            wave: list[tuple[int, Item]] = []
            for number, item in source:
                backlog.items[number] = item
                if job.is_done(item):
                    backlog.outcomes[number] = (None, {})
                else:
                    wave.append((number, item))
                yield from backlog.ready()
                if len(wave) == self.wave:
                    break
            if not wave:
                break
            for number, outcome, seconds in _run(self.ray, plan, wave, batch, reader, worker):
                started = started or time.perf_counter()
                if number in backlog.items and number not in backlog.outcomes:  # the first answer counts
                    backlog.outcomes[number] = (outcome, seconds)
                    clock.add(seconds)
                yield from backlog.ready()
            if backlog.items:
                raise M2FError(f"The Ray cluster gave no answer for {len(backlog.items)} images.", hint=LOST)
        processes = {"read": plan.readers, "prepare": plan.readers}
        processes |= dict.fromkeys(("network", "post_process", "write"), plan.actors)
        self.stages = clock.stages(time.perf_counter() - started, processes)


def _preparer(segmenter: BaseSegmenter) -> BaseSegmenter | None:
    """Return a segmenter that does nothing but prepare, and can be pickled; None where the actors have to do that."""
    if type(segmenter) is not Segmenter:
        return None
    light = copy.copy(segmenter)
    light.model, light.device = None, torch.device("cpu")
    return light


def _run(
    ray: Any, plan: ClusterPlan, wave: list[tuple[int, Any]], batch: int, reader: _Reader, worker: tuple[Any, ...]
) -> Iterator[tuple[int, Any, dict[str, float]]]:
    """Yield (number, outcome, seconds) of the items, in the order in which the cluster finishes them."""
    import pyarrow

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = LOSSES * plan.actors
    count = min(BLOCK, max(batch, math.ceil(len(wave) / (SHARES * plan.actors))))
    tables = [
        pyarrow.table(
            {"number": [number for number, _ in part], "work": [pickle.dumps(_Travelling(item)) for _, item in part]}
        )
        for part in (wave[start : start + count] for start in range(0, len(wave), count))
    ]
    images = ray.data.from_arrow(tables).map_batches(reader, batch_size=None, batch_format="pyarrow", **plan.reader)
    results = images.map_batches(
        _Actor,
        fn_constructor_args=worker,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(plan.actors, len(tables))),
        **plan.actor,
    )
    try:
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for number, work in _rows(table):
                if isinstance(work, Failure):
                    raise work.error from work.cause()
                yield number, work.value, work.seconds
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0][:300].rstrip(".")
        raise M2FError(
            f"The Ray cluster has lost too many processes: {reason}.",
            hint=f"{LOST} If the memory was not enough, start fewer processes on each machine.",
        ) from error


# --- in the processes of the cluster ----------------------------------------------------------------------------------


@dataclass
class _Travelling:
    """State of an item on its way through the cluster.

    Attributes:
        item: the item; None in an answer.
        value: what `prepare` or `read` returned; in the end the outcome.
        kept: value of `read` for `finish`.
        is_prepared: True if `value` is what `prepare` returned.
        is_open: False when no more stages follow.
        seconds: duration of each stage.
    """

    item: Any
    value: Any = None
    kept: Any = None
    is_prepared: bool = False
    is_open: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def fail(self, error: M2FError) -> None:
        self.value, self.kept, self.is_open = error, None, False


def _rows(table: Any) -> Iterator[tuple[int, Any]]:
    for number, work in zip(table["number"].to_pylist(), table["work"], strict=True):
        yield number, pickle.loads(work.as_buffer())


def _row(number: int, work: _Travelling | Failure) -> Any:
    import pyarrow

    content = pyarrow.array([pickle.dumps(work, protocol=5)], pyarrow.large_binary())
    return pyarrow.table({"number": [number], "work": content})


class _Tries:
    """Actor that counts how often something was begun."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}

    def begin(self, key: Any) -> int:
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def end(self, key: Any) -> None:
        self.counts.pop(key, None)


@dataclass(frozen=True)
class _Care:
    """Care for images that end their process, for example by its memory: Ray would try them for ever.

    Attributes:
        tries: handle of an actor `_Tries`.
        folder: folder of the driver.
    """

    tries: Any
    folder: str

    def parts(self, stage: str, rows: list[tuple[int, _Travelling]]) -> Iterator[list[tuple[int, _Travelling]]]:
        """Yield the rows of a block at once; one by one where their process was lost before.

        A row at which `LOSSES` processes were lost has failed.
        """
        block = (stage, "block", rows[0][0])
        if self._begin(block) == 1:
            yield rows
        else:
            for number, work in rows:
                if work.is_open and self._begin((stage, number)) > LOSSES:
                    hint = "The memory of the process may be too small for this image."
                    work.fail(M2FError(f"{LOSSES} processes of the Ray cluster were lost at this image.", hint=hint))
                yield [(number, work)]
                self.tries.end.remote((stage, number))
        self.tries.end.remote(block)

    def _begin(self, key: Any) -> int:
        import ray

        count: int = ray.get(self.tries.begin.remote(key))
        return count


@dataclass(frozen=True)
class _Reader:
    """Reading and preparing of a block of items, in a task."""

    job: Job[Any, Any]
    preparer: BaseSegmenter | None
    care: _Care

    def __call__(self, table: Any) -> Iterator[Any]:
        try:
            _enter(self.care.folder)
            choose_threads(1)
            for part in self.care.parts("read", list(_rows(table))):
                for number, work in part:
                    if work.is_open:
                        self.read(work)
                    yield _row(number, work)
        except Exception as error:
            yield _row(-1, failure_of(error))

    def read(self, work: _Travelling) -> None:
        started = time.perf_counter()
        try:
            work.value, work.kept = self.job.read(work.item)
            work.seconds["read"] = time.perf_counter() - started
            if self.preparer is not None:
                started = time.perf_counter()
                work.value, work.is_prepared = self.preparer.prepare(work.value), True
                work.seconds["prepare"] = time.perf_counter() - started
        except M2FError as error:
            work.fail(error)


class _Actor:
    """Process with a model. An error at its start is its answer: Ray would try again and again."""

    def __init__(
        self,
        opener: Callable[[str], BaseSegmenter],
        device: str,
        threads: int,
        job: Job[Any, Any],
        batch: int,
        workers: int,
        care: _Care,
    ):
        self.job, self.batch, self.workers, self.care = job, batch, workers, care
        self.failure: Failure | None = None
        try:
            _enter(care.folder)
            choose_threads(threads)
            self.segmenter = opener(device)
        except Exception as error:
            self.failure = failure_of(error)

    def __call__(self, table: Any) -> Iterator[Any]:
        if self.failure is not None:
            yield _row(-1, self.failure)
            return
        try:
            for part in self.care.parts("infer", list(_rows(table))):
                yield from self.answers(part)
        except Exception as error:
            yield _row(-1, failure_of(error))

    def answers(self, rows: list[tuple[int, _Travelling]]) -> Iterator[Any]:
        if self.batch > 1:
            rows.sort(key=lambda row: _shape(row[1]))
        job = _Rest(self.job, self.segmenter)
        images = stream(_Given(self.segmenter), rows, job, batch=self.batch, workers=self.workers)
        for (number, work), outcome, seconds in images:
            if work.is_open:
                work.value = outcome
            yield _row(number, _Travelling(None, work.value, seconds={**seconds, **work.seconds}))


class _Given(Wrapper):
    """Segmenter that gets images which were prepared elsewhere, among others."""

    def prepare(self, image_HWC: Any) -> Any:
        work: _Travelling = image_HWC
        return work.value if work.is_prepared else self.inner.prepare(work.value)


@dataclass(frozen=True)
class _Rest(Job[Any, Any]):
    """The part of a job that follows reading."""

    job: Job[Any, Any]
    segmenter: BaseSegmenter

    def is_done(self, item: tuple[int, _Travelling]) -> bool:
        return not item[1].is_open

    def read(self, item: tuple[int, _Travelling]) -> tuple[Any, Any]:
        return item[1], item[1].kept

    def finish(self, segmenter: BaseSegmenter, kept: Any, raw: Any) -> Any:
        return self.job.finish(self.segmenter, kept, raw)

    def use(self, item: tuple[int, _Travelling], results: Any) -> Any:
        work = item[1]
        work.kept = None
        return self.job.use(work.item, results)

    def threads(self, segmenter: BaseSegmenter, workers: int) -> int:
        return self.job.threads(self.segmenter, workers)


def _shape(work: _Travelling) -> tuple[int, ...]:
    pixels = getattr(work.value, "pixels_CHW", work.value)
    return tuple(getattr(pixels, "shape", ()))


def _enter(folder: str) -> None:
    """Go to the folder of the driver, since paths may be relative to it.

    Raises:
        DataError: this machine does not have it.
    """
    silence_pillow()
    try:
        os.chdir(folder)
    except OSError as error:
        raise DataError(
            f"The machine {os.uname().nodename} of the Ray cluster has no folder {folder}.",
            hint="Start the command in a folder that all machines share, or use addresses of a store.",
        ) from error

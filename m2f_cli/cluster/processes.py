"""Stream of images through several processes, each with the model on a device of its own.

Groups of items go to whichever process is free, and each process sends them through a stream of its own. Outcomes come
back in the order of the items, so that one process writes the journal. A group is what one process alone would put into
a batch: the results are the same.
"""

from __future__ import annotations

import itertools
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

import torch

from ..errors import M2FError
from ..inference.base import BaseSegmenter
from ..inference.load import ModelOptions, open_model
from ..inference.stream import Item, Job, Out, Outcomes, batches, stream
from ..runtime.pools import Spawning, join_parent
from ..runtime.threads import choose_threads
from ..structures.images import silence_pillow
from .backlog import Backlog

AHEAD = 4  # groups for each process that may be finished before their turn
STOP_SECONDS = 20  # until a process that was asked to stop is ended
LOST = "Finished images stay, and --skip-existing goes on. If the memory was not enough, use fewer --devices."


@dataclass
class Worker:
    """Process at the other end of a connection.

    Attributes:
        name: its device or rank, for messages.
        connection: the connection to `serve` there.
        sent: numbers of the items that it has and that are not finished, oldest first.
    """

    name: str
    connection: Connection
    sent: deque[int] = field(default_factory=deque)

    def send(self, message: object) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise self.lost() from error

    def receive(self) -> tuple[Any, dict[str, float]]:
        """Return the outcome of its oldest item, and the seconds of each stage.

        Raises:
            M2FError: the process has ended.
            Exception: whatever ended its stream.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.lost() from error
        if isinstance(message, Failure):
            raise message.error from message.cause()
        outcome: tuple[Any, dict[str, float]] = message
        return outcome

    def lost(self) -> M2FError:
        return M2FError(f"The process of {self.name} was killed.", hint=LOST)


@dataclass(frozen=True)
class Failure:
    """Error that ended the stream of a process. Its traceback is text, since it cannot be sent itself."""

    error: Exception
    trace: str

    def cause(self) -> Exception | None:
        return None if isinstance(self.error, M2FError) else RuntimeError(f"in another process:\n{self.trace}")


@dataclass(frozen=True)
class Processes:
    """Streamer with one process for each device.

    Attributes:
        openers: (name of the device, function that opens the model on it), to be called in the process.
        threads: number of CPU threads of each process; None leaves it to PyTorch.
    """

    openers: Sequence[tuple[str, Callable[[], BaseSegmenter]]]
    threads: int | None = None

    def __call__(
        self,
        segmenter: BaseSegmenter,
        items: Iterable[Item],
        job: Job[Item, Out],
        *,
        batch: int = 1,
        workers: int = 2,
    ) -> Outcomes[Item, Out]:
        """Yield what `stream` yields. The segmenter itself does nothing.

        Raises:
            M2FError: a process was killed, or cannot open the model.
        """
        context = Spawning()
        started: list[Worker] = []
        processes: list[Any] = []
        try:
            for name, opener in self.openers:
                ours, theirs = context.Pipe()
                started.append(Worker(name, ours))
                process = context.Process(target=_work, args=(theirs, opener, self.threads), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()  # the process has it now, and its end is seen here
            yield from dispatch(started, items, job, batch=batch, workers=workers)
        finally:
            for worker in started:
                worker.connection.close()
            for process in processes:  # they finish the images that they have begun, and leave no half-written file
                process.join(STOP_SECONDS)
                process.kill()
                process.join()


def _work(connection: Connection, opener: Callable[[], BaseSegmenter], threads: int | None) -> None:
    """Open the model in a new process, and do the work that comes over a connection."""
    join_parent()
    choose_threads(threads)
    silence_pillow()
    try:
        segmenter = opener()
    except Exception as error:
        _report(connection, error)
        return
    serve(connection, segmenter)


def open_on(options: ModelOptions, device: str) -> BaseSegmenter:
    """Open a model on another device than the options say. Processes are given this function."""
    return open_model(replace(options, device=device))


# --- the one that has the items ---------------------------------------------------------------------------------------


def dispatch(
    started: Sequence[Worker], items: Iterable[Item], job: Job[Item, Out], *, batch: int, workers: int
) -> Outcomes[Item, Out]:
    """Share items among processes, each of which runs `serve`, and yield what `stream` yields.

    Args:
        started: the processes.
        items: as in `stream`; as `job`, `batch` and `workers`.

    Raises:
        M2FError: a process has ended.
    """
    depth = 2 * workers + 4 * batch  # items that a stream takes before its first outcome, at most
    window = AHEAD * depth * len(started)
    groups = batches(items, batch)
    backlog: Backlog[Item] = Backlog()
    count, is_over = 0, False
    for worker in started:
        worker.send((job, batch, workers))
    while not is_over or backlog.items:
        while not is_over and (free := _free(started, depth, count - backlog.due < window)) is not None:
            group = next(groups, None)
            if group is None:
                is_over = True
                for worker in started:
                    worker.send(None)
                break
            numbers = range(count, count + len(group))
            backlog.items.update(zip(numbers, group, strict=True))
            count += len(group)
            if all(map(job.is_done, group)):
                backlog.outcomes.update((number, (None, {})) for number in numbers)
                break
            free.sent.extend(numbers)
            free.send(group)
        yield from backlog.ready()
        busy = {worker.connection: worker for worker in started if worker.sent}
        is_full = is_over or _free(started, depth, count - backlog.due < window) is None
        for connection in wait(list(busy), None if is_full else 0) if busy else ():
            worker = busy[connection]  # type: ignore[index]
            answer = worker.receive()
            backlog.outcomes[worker.sent.popleft()] = answer


def _free(started: Sequence[Worker], depth: int, has_room: bool) -> Worker | None:
    """Return the process to give work to, if any: the one with the oldest item when too many others are finished.

    That one may wait for more items before it gives the oldest.
    """
    oldest = min((worker for worker in started if worker.sent), key=lambda worker: worker.sent[0], default=None)
    able = [worker for worker in started if len(worker.sent) < depth and (has_room or worker is oldest)]
    return min(able, key=lambda worker: len(worker.sent), default=None)


# --- the one that has a model -----------------------------------------------------------------------------------------


def serve(connection: Connection, segmenter: BaseSegmenter) -> None:
    """Send what comes over a connection through a stream, until its other end says that there is no more, or closes."""
    device = segmenter.device
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # of this thread, for kernels that ask for the current device
    inbox: SimpleQueue[list[Any] | None] = SimpleQueue()
    is_closed = threading.Event()

    def receive() -> None:
        """Empty the connection at all times: otherwise both ends could wait for each other with full buffers."""
        try:
            while (group := connection.recv()) is not None:
                inbox.put(group)
        except (EOFError, OSError):
            is_closed.set()
        inbox.put(None)

    try:
        job, batch, workers = connection.recv()
        threading.Thread(target=receive, daemon=True).start()
        items = itertools.chain.from_iterable(iter(inbox.get, None))
        with closing(stream(segmenter, items, job, batch=batch, workers=workers)) as images:
            for _, outcome, seconds in images:
                if is_closed.is_set():
                    return
                connection.send((outcome, seconds))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody waits for the outcomes any more
        return
    except Exception as error:
        _report(connection, error)


def failure_of(error: Exception) -> Failure:
    """Return the error that is being handled, in a form that can be sent to another process."""
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of another package that cannot be pickled
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(error, trace)


def _report(connection: Connection, error: Exception) -> None:
    """Send an error to the other end, if that is still there."""
    with suppress(OSError):
        connection.send(failure_of(error))

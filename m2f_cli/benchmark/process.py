"""Work in a process of its own. Its memory can be measured, and other work does not influence it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from .. import errors
from ..errors import M2FError, is_out_of_memory
from ..runtime.memory import Memory


@dataclass(frozen=True)
class Work:
    """A piece of work that a script times.

    Attributes:
        run: does the work once.
        touch: does a little of the same work, so that imports are no part of the growth of memory.
        tell: turns the result of the first run into plain values.
    """

    run: Callable[[], Any]
    touch: Callable[[], Any] = lambda: None
    tell: Callable[[Any], dict[str, Any]] = lambda result: {}


class Timer:
    """Host of a `Work`, which measures its time and the growth of memory."""

    def __init__(self, make: Callable[[], Work]):
        self.work = make()

    def start(self) -> dict[str, Any]:
        self.work.touch()
        memory = Memory(torch.device("cpu"))
        result = self.work.run()
        growth = memory.growth()["resident_growth_mib"]
        return {"growth": growth, **self.work.tell(result)}

    def run(self) -> tuple[float, float]:
        """Return the wall-clock seconds and the processor seconds of one run."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.work.run()
        return time.perf_counter() - wall, time.process_time() - cpu


# --- the end that answers ---------------------------------------------------------------------------------------------


def _serve(connection: Connection, make: Callable[[], Any], space: str) -> None:
    """Answer requests until the connection is closed. Output of libraries goes to stderr: stdout is the command's."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and then ends this process
    tempfile.tempdir = space
    host: Any = None
    with connection:
        while (request := _received(connection)) is not None:
            method, options = request
            try:
                if host is None:
                    host = make()
                value = None if method == "ready" else getattr(host, method)(**options)
                connection.send((value, None))
            except M2FError as error:
                connection.send((None, (type(error).__name__, error.message, error.hint)))
            except Exception as error:  # a library may raise anything; the parent reports it, without a traceback
                connection.send((None, error_record(error, method)))


def error_record(error: Exception, method: str) -> tuple[str, str, str | None]:
    """Return kind, message and hint of the M2FError that an unforeseen error becomes."""
    if os.environ.get("M2F_DEBUG"):
        traceback.print_exception(error)
    first = (str(error).strip() or "no reason given").splitlines()[0]
    if is_out_of_memory(error):
        return "M2FError", f"Not enough memory: {first.rstrip('.')}.", "Use a smaller --size, --batch or model."
    message = f"{method!r} failed in the timed process: {type(error).__name__}: {first.rstrip('.')}."
    return "M2FError", message, "M2F_DEBUG=1 shows where."


def _received(connection: Connection) -> tuple[str, dict[str, Any]] | None:
    try:
        return connection.recv()
    except EOFError:
        return None


# --- the end that asks ------------------------------------------------------------------------------------------------


class Side:
    """A process with a host.

    Args:
        make: function that makes the host in the process. It is sent there, so it is a function of a module, or a
            `functools.partial` of one.
    """

    def __init__(self, name: str, make: Callable[[], Any]):
        self.name = name
        self.space = tempfile.TemporaryDirectory(prefix="m2f-bench-")  # outlives the process, so it is always removed
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, self.space.name), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, **options: Any) -> Any:
        """Call a method of the host.

        Raises:
            M2FError: the host raised an error, or its process has ended.
        """
        try:
            self.connection.send((method, options))
            value, problem = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.process.join()
            raise M2FError(
                f"The process that timed {self.name} ended early, with code {self.process.exitcode}.",
                hint="Its last output is above; -9 is usually a lack of memory: use a smaller --size or --batch.",
            ) from error
        if problem is not None:
            raise error_from(*problem)
        return value

    def close(self, *, now: bool = False) -> None:
        """End the process after its last answer, or at once if `now` is True."""
        self.connection.close()
        if now:
            self.process.kill()
        self.process.join()
        self.space.cleanup()


def error_from(kind: str, message: str, hint: str | None) -> M2FError:
    """Return an error of the other process. It is made without a constructor, because those differ."""
    cls = getattr(errors, kind, M2FError)
    error = cls.__new__(cls)
    M2FError.__init__(error, message, hint=hint)
    return error


@contextmanager
def side(name: str, make: Callable[[], Any]) -> Iterator[Side]:
    """Yield a process for the length of a block, ready to be asked."""
    worker = Side(name, make)
    try:
        worker.ask("ready")
        yield worker
    except BaseException:
        worker.close(now=True)
        raise
    worker.close()

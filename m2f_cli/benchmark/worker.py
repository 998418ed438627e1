"""One side of a race, in a process of its own: so its memory can be told, and nothing that another one does matters."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import errors, plugins
from ..errors import ConfigError, M2FError
from ..inference.base import innermost
from ..inference.compile import compile_parts
from ..inference.mask_rendering import Size
from ..runtime.allocator import keep_memory_if_possible
from ..runtime.devices import DTYPES
from . import machine
from .case import Case, network_size, picture_size, training_size
from .flops import NOT_COUNTED, flops_of, parameters_of
from .model_under_test import fixed_size, load_subject, share
from .stages import Stages, split, synchronise

OURS = "m2f"
NO_FLOPS = ("post", "load", "train", "predict", "eval")  # where a run is not one forward pass of known size


@dataclass
class TimedRun:
    """One run. other_cores: how many cores, on average, worked for somebody else; None, joules too: not told."""

    seconds: float
    cpu_seconds: float
    other_cores: float | None
    joules: float | None
    stages: dict[str, float] | None = None


class Host:
    """What a worker answers to: its methods, called by name."""

    def __init__(self, case: Case, side: str, folder: Path | None):
        if case.keep_memory:
            keep_memory_if_possible()
        if case.threads is not None:
            torch.set_num_threads(case.threads)
        self.case, self.segmenter = case, load_subject(case)
        self.device = torch.device(self.segmenter.device)  # an engine may have another one than PyTorch would choose
        self.parameters: dict[str, int] = {}
        if side == OURS:
            self.parameters = parameters_of(self.segmenter.model)
            self.workload: Any = None
        else:
            innermost(self.segmenter).model = nn.Identity()  # only what stands around the network is needed
            self.workload = plugins.get("peers", side, trust_code=case.trust_code)(case, self.segmenter, folder)  # type: ignore[operator]
        self.energy = machine.Energy(self.device)

    def share(self, folder: Path) -> None:
        """Write the weights for a peer."""
        share(self.segmenter, folder)

    def start(self) -> dict[str, Any]:
        """Make the work ready, do it for the first time, and say by how much that raises memory."""
        if self.workload is None:
            make = plugins.get("workloads", self.case.what, trust_code=self.case.trust_code)
            if self.case.compile:
                compile_parts(self.segmenter)
            self.workload = make(self.case, self.segmenter)  # type: ignore[operator]
        if self.case.compile:
            self.run()  # compiles for the size that is timed; the compiler's memory is not that of a run
        else:
            self.workload.touch()
        synchronise(self.device)
        memory = machine.Memory(self.device)
        self.run()
        return {
            "memory": memory.growth(),
            "images": self.workload.images,
            "machine": machine.describe(self.device),
            "energy": self.energy.source,
        }

    def run(self, *, watched: bool = False) -> TimedRun:
        stages = Stages(self.device, live=watched)
        parts = {} if self.case.compile else self.workload.parts
        synchronise(self.device)
        busy, joules = machine.busy_seconds(), self.energy.joules()
        started, cpu = time.perf_counter(), time.process_time()
        with stages.watching(parts, self.workload.methods):
            self.workload.run(stages)
        synchronise(self.device)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        others = None if busy is None else max(0.0, (machine.busy_seconds() - busy - cpu) / seconds)
        found = split(stages.seconds, seconds) if watched else None
        return TimedRun(seconds, cpu, others, self.energy.since(joules), found)

    def answer(self) -> dict[str, Any]:
        return self.workload.answer()

    def describe(self) -> dict[str, Any]:
        """What is known without a clock, and the speed of a matrix product. The last thing that is asked."""
        case, config, precision = self.case, self.segmenter.config, self.segmenter.precision
        sizes = self.workload.sizes or [self._size()]
        counted, why = self._flops(sizes[0][1])
        return {
            "model": {
                "name": config.name,
                "source": self.segmenter.source,
                "parameters": self.parameters,
                "weights": "random" if case.is_random else "as loaded",
            },
            "precision": precision,
            "picture": _the_only(picture for picture, _ in sizes),
            "network_input": _the_only(seen for _, seen in sizes),
            "sizes": sizes,
            "device": machine.device_name(self.device),
            "flops": counted,
            "flops_missing": why,
            "matmul_peak": machine.matmul_peak(self.device, DTYPES[precision]) if precision in DTYPES else None,
        }

    def _size(self) -> tuple[Size, Size]:
        """Of the picture, and of what the network sees of it."""
        case, config = self.case, self.segmenter.config
        if case.what == "train":
            return training_size(case, config), training_size(case, config)
        return picture_size(case, config), network_size(case, config, fixed_size(self.segmenter))

    def _flops(self, size: Size) -> tuple[dict[str, Any] | None, str | None]:
        """FLOPs of a run by part; or None, and why."""
        if self.case.what in NO_FLOPS:
            return None, "a run is not one forward pass of known size"
        classes, trusted = len(self.segmenter.categories), self.case.trust_code
        try:
            counted = flops_of(self.segmenter.config.model, classes, self.case.batch, size, trust_code=trusted)
        except ConfigError as error:
            return None, str(error)
        return {**counted, "not_counted": NOT_COUNTED}, None


def _the_only(sizes: Iterable[Size]) -> list[int] | None:
    """The size of all; None where there are several."""
    found = set(map(tuple, sizes))
    return list(found.pop()) if len(found) == 1 else None


# --- talking ----------------------------------------------------------------------------------------------------------


def _serve(connection: Connection, case: Case, side: str, folder: Path | None, space: str) -> None:
    """Answer until the other end hangs up. What libraries print goes to stderr: stdout belongs to the command."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other end's, which then ends this one
    tempfile.tempdir = space
    host: Host | None = None
    with connection:
        while (request := _received(connection)) is not None:
            method, options = request
            try:
                if host is None:
                    host = Host(case, side, folder)
                value = None if method == "ready" else getattr(host, method)(**options)
                connection.send((value, None))
            except M2FError as error:
                connection.send((None, (type(error).__name__, error.message, error.hint)))
            except Exception as error:  # whatever a library raises is told where it is asked, and not by a traceback
                connection.send((None, _told(error, method)))


def _told(error: Exception, method: str) -> tuple[str, str, str | None]:
    """Kind, message and hint of the M2FError that an unforeseen one becomes."""
    if os.environ.get("M2F_DEBUG"):
        traceback.print_exception(error)
    first = (str(error).strip() or "no reason given").splitlines()[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        return "M2FError", f"Not enough memory: {first.rstrip('.')}.", "Use a smaller --size, --batch or model."
    message = f"{method!r} failed in the timed process: {type(error).__name__}: {first.rstrip('.')}."
    return "M2FError", message, "M2F_DEBUG=1 shows where."


def _received(connection: Connection) -> tuple[str, dict[str, Any]] | None:
    try:
        return connection.recv()
    except EOFError:
        return None


class Side:
    """The end that asks."""

    def __init__(self, case: Case, name: str, folder: Path | None = None):
        self.name = name
        self.space = tempfile.TemporaryDirectory(prefix="m2f-bench-")  # files of the worker, whatever becomes of it
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, case, name, folder, self.space.name)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, **options: Any) -> Any:
        """Call a method of the `Host`.

        Raises:
            M2FError: what the worker raised, or that it has ended.
        """
        try:
            self.connection.send((method, options))
            value, problem = self.connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.process.join()
            raise M2FError(
                f"The process that timed {self.name} ended early, with code {self.process.exitcode}.",
                hint="Its last words are above; -9 is usually a lack of memory: use a smaller --size or --batch.",
            ) from error
        if problem is not None:
            raise _raised(*problem)
        return value

    def close(self, *, now: bool = False) -> None:
        """End the worker: when it has answered, or `now`."""
        self.connection.close()
        if now:
            self.process.kill()
        self.process.join()
        self.space.cleanup()


def _raised(kind: str, message: str, hint: str | None) -> M2FError:
    """The worker's error again; constructors differ, so it is made without one."""
    cls = getattr(errors, kind, M2FError)
    error = cls.__new__(cls)
    M2FError.__init__(error, message, hint=hint)
    return error


@contextmanager
def side(case: Case, name: str, folder: Path | None = None) -> Iterator[Side]:
    """A worker for the length of a block, ready to be asked."""
    made = Side(case, name, folder)
    try:
        made.ask("ready")
        yield made
    except BaseException:
        made.close(now=True)
        raise
    made.close()

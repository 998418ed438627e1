"""Harness that reads mutated inputs in a child process, with limits of time and memory.

An input that is neither read nor refused with one clear error is a fault.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from m2f_cli.errors import M2FError

GIB = 1 << 30  # bytes
FAULTS = ("traceback", "hang", "memory", "crash", "message")
WAITS = 6  # seconds by the clock for each second of the processor: other programs may keep it busy
SILENT = ("hang", "does not heed its alarm")  # the code that hangs is not Python's
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Target:
    """A reader of the product, and mutants for it.

    Attributes:
        name: short name, for tables and folders.
        mutants: writes endless mutants of valid samples into the folder that it is given. It yields a short
            description of each and the path to hand over. The next one may overwrite the last.
        read: calls the reader of the product.
        items: regular expression of what an error may name instead of a file, such as the key of a setting.
        share: number of inputs, as a share of what other targets get. Slow readers get less than 1.
    """

    name: str
    mutants: Callable[[random.Random, Path], Iterator[tuple[str, Path]]]
    read: Callable[[Path], object]
    items: str = ""
    share: float = 1.0


@dataclass
class Kind:
    """Faults that look alike: how many, and the first of them."""

    count: int
    description: str
    said: str
    kept: Path | None


@dataclass
class Report:
    """Outcomes of a run: "read", "refused" or one of `FAULTS`, and the kinds of the faults."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[tuple[str, str], Kind] = field(default_factory=dict)
    peak: int = 0  # bytes; the most that a child held beyond what it held at its start

    @property
    def tried(self) -> int:
        return self.counts.total()

    @property
    def faults(self) -> int:
        return sum(self.counts[name] for name in FAULTS)


class TookTooLong(BaseException):
    """The alarm of an input. No `except Exception` of a reader catches it."""


def run(
    target: Target, count: int, seed: int, *, seconds: float = 10, memory: int = 3 * GIB // 2, keep: Path | None = None
) -> Report:
    """Read `count` mutants and return how each ended.

    Args:
        seed: the same seed gives the same mutants.
        seconds: limit of the processor's time for each input; by the clock it is `WAITS` times as long.
        memory: limit in bytes of what an input may add to the address space.
        keep: folder for copies of the inputs of faults, at most 3 of a kind.

    Raises:
        RuntimeError: the mutator failed.
    """
    report = Report(target.name)
    starts = 0
    while report.tried < count:
        _work_through(target, count, f"{target.name} {seed} {starts}", seconds, memory, keep, report)
        starts += 1
    return report


def replay(target: Target, paths: list[Path], *, seconds: float = 10, memory: int = 3 * GIB // 2) -> Report:
    """Read inputs as they are, in a child process as `run` does. Each is copied first: a reader may write beside it."""

    def copies(_: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
        for path in paths:
            yield path.name, copied(path, folder / path.name)

    return run(Target(target.name, copies, target.read, target.items), len(paths), 0, seconds=seconds, memory=memory)


def copied(path: Path, to: Path) -> Path:
    """Copy a file, or a folder with all that is in it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=_special)
    elif path.is_file() and not path.is_symlink():
        shutil.copyfile(path, to)
    return to


def _special(folder: str, names: list[str]) -> list[str]:
    """Return what cannot be copied: pipes and the like."""
    paths = {name: Path(folder) / name for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_file() or path.is_dir())]


def table(reports: list[Report]) -> str:
    """Return the outcomes of each target and the kinds of all faults as text."""
    lines = [f"{'target':32} {'tried':>7} {'read':>7} {'refused':>8} {'faults':>7} {'MiB':>6}"]
    for each in reports:
        lines.append(
            f"{each.target:32} {each.tried:7} {each.counts['read']:7} {each.counts['refused']:8} {each.faults:7}"
            f" {each.peak >> 20:6}"
        )
    tried, read, refused = (sum(column) for column in zip(*map(_figures, reports), strict=True))
    lines.append(f"{'all':32} {tried:7} {read:7} {refused:8} {sum(each.faults for each in reports):7}")
    for each in reports:
        for (outcome, name), kind in sorted(each.kinds.items()):
            lines.append(f"{each.target}: {kind.count} x {outcome}: {name}")
            lines.append(f"    {kind.description}: {kind.said[:400]}" + (f" [{kind.kept}]" if kind.kept else ""))
    return "\n".join(lines)


def _figures(report: Report) -> tuple[int, int, int]:
    return report.tried, report.counts["read"], report.counts["refused"]


def _work_through(
    target: Target, count: int, seed: str, seconds: float, memory: int, keep: Path | None, report: Report
) -> None:
    """Let one child read mutants until `count` is reached or the child ends."""
    context = multiprocessing.get_context("fork")  # what the parent has imported is there at once
    with tempfile.TemporaryDirectory(prefix="m2f-fuzz-") as folder:
        ours, theirs = context.Pipe()
        left = count - report.tried
        child = context.Process(target=_child, args=(target, left, seed, Path(folder), seconds, memory, theirs, ours))
        child.start()
        theirs.close()
        try:
            while report.tried < count:
                about = _receive(ours, 10 * seconds + 20)
                if about[0] not in ("about", "broken"):
                    raise RuntimeError(f"the mutator of {target.name} did not go on: {about[0]}")
                if about[0] == "broken":
                    raise RuntimeError(f"the mutator of {target.name} failed:\n{about[1]}")
                _, description, path = about
                answer = _receive(ours, 2 * WAITS * seconds + 5)
                if has_died := answer[0] == "ended":
                    child.join()
                    answer = ("crash", _name_of_exit(child.exitcode), "")
                _note(report, answer, description, path, keep)
                if has_died or answer[:2] == SILENT:
                    return
                if answer[0] in FAULTS:
                    ours.send("next")
        finally:
            child.kill()
            child.join()
            ours.close()


def _receive(connection: Connection, seconds: float) -> tuple:
    """Return the next message, ("ended", …) where the other side has died, or a hang where it says nothing."""
    try:
        return connection.recv() if connection.poll(seconds) else (*SILENT, "")
    except (EOFError, ConnectionError):
        return ("ended", "", "")


def _name_of_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"


def _note(report: Report, answer: tuple, description: str, path: Path, keep: Path | None) -> None:
    outcome, name, said, *peak = answer
    report.counts[outcome] += 1
    report.peak = max([report.peak, *peak])
    if outcome not in FAULTS:
        return
    kind = report.kinds.setdefault((outcome, name), Kind(0, description, said, None))
    kind.count += 1
    if keep is not None and kind.count <= 3:
        slug = re.sub(r"[^\w.-]+", "-", f"{report.target}-{outcome}-{name}-{kind.count}")[:150]
        kept = copied(path, keep / slug / path.name)
        kind.kept = kind.kept or kept


def _child(
    target: Target,
    count: int,
    seed: str,
    folder: Path,
    seconds: float,
    memory: int,
    connection: Connection,
    others_end: Connection,
) -> None:
    """Make and read mutants. Each is announced, so that the parent knows which one ended this process."""
    others_end.close()
    quiet = os.open(os.devnull, os.O_RDWR)  # decoders in C write to the terminal
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    faulthandler.disable()
    gc.freeze()
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _alarm)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    try:
        for description, path in itertools.islice(target.mutants(random.Random(seed), folder), count):
            connection.send(("about", description, path))
            outcome, name, said = _outcome(target, path, folder, seconds, memory)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - start
            connection.send((outcome, name, said, peak))
            if outcome in FAULTS:
                connection.recv()  # the parent copies the input
    except Exception:
        connection.send(("broken", traceback.format_exc()))


def _alarm(*_: object) -> None:
    raise TookTooLong


def _outcome(target: Target, path: Path, folder: Path, seconds: float, memory: int) -> tuple[str, str, str]:
    """Read one input and return outcome, kind and what the error said."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITS * seconds, seconds)
        try:
            target.read(path)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    except M2FError as error:
        said = str(error)
        if said.strip() and _names_something(said, path, folder, target.items):
            return "refused", "", said
        return "message", f"{type(error).__name__} in {_innermost(error)} names neither file nor item", said
    except TookTooLong as error:
        return "hang", _innermost(error), ""
    except MemoryError as error:
        return "memory", f"MemoryError in {_innermost(error)}", str(error)
    except BaseException as error:
        return "traceback", f"{type(error).__name__} in {_innermost(error)}", str(error)[:2000]
    return "read", "", ""


def _names_something(said: str, path: Path, folder: Path, items: str) -> bool:
    """Tell whether a message has the name of a file of the input, or of one of its items."""
    if items and re.search(items, said):
        return True
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else (path.name,)
    inside = [each.name for each in path.rglob("*")] if path.is_dir() else []
    return any(name in said for name in (*parts, *inside))


def _innermost(error: BaseException) -> str:
    """Return file and function of the product's innermost frame."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "/m2f_cli/" in each.filename]
    if not frames:
        return "the test itself"
    return f"{frames[-1].filename.rpartition('/m2f_cli/')[2]}:{frames[-1].name}"

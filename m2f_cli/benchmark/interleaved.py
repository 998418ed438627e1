"""Timing of work in turns: `bench` for a case beside a peer, `race` for work that a script describes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..errors import ConfigError
from . import statistics as stats
from .case import Case
from .machine import load_average
from .process import Side, Timer, Work, side
from .worker import OURS, Host, TimedRun

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchOptions:
    """Options of a benchmark.

    Attributes:
        rounds: timed rounds, at least 1.
        warm_up: rounds before them, in addition to the very first run.
        watched: further rounds that time the stages.
        peer: a name of the group "peers" in plugins.py. None: no peer. A peer keeps freed memory only if all
            processes do (`m2f --keep-memory bench`).
        peer_compile: compile the network of the peer.
        peer_precision: number format of the peer. None: the same as ours.
    """

    rounds: int = 5
    warm_up: int = 1
    watched: int = 2
    peer: str | None = None
    peer_compile: bool = False
    peer_precision: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warm_up < 0 or self.watched < 0:
            raise ConfigError(f"rounds = {self.rounds} is at least 1, warm_up and watched are not negative.")


@dataclass(frozen=True)
class Round:
    """Record of one run of a side, for `on_round`.

    Attributes:
        side: name of the side.
        phase: "warm-up", "timed" or "stages".
        number: number of the round in its phase, from 0.
        seconds: duration of the run.
    """

    side: str
    phase: str
    number: int
    seconds: float


OnRound = Callable[[Round], None]


def bench(case: Case, options: BenchOptions, on_round: OnRound | None = None) -> dict[str, Any]:
    """Time a case, and return the tree that the docstring of the package describes.

    Raises:
        M2FError: the model, the peer or the memory for this work is missing.
    """
    before = load_average()
    with ExitStack() as stack:
        ours = stack.enter_context(side(OURS, functools.partial(Host, case, OURS, None)))
        sides = [ours, *_peers(case, options, ours, stack)]
        starts = {each.name: each.ask("start") for each in sides}
        samples, watched = run_interleaved(sides, options, on_round or (lambda each: None))
        differences = _differences([each.ask("answer") for each in sides])
        for each in sides[1:]:
            each.close()  # matrix products are timed without other processes
        known = ours.ask("describe")
    machine = {
        **starts[OURS]["machine"],
        "load_before": before,
        "load_after": load_average(),
        "energy": starts[OURS]["energy"],
    }
    rows = {name: _side(starts[name], samples[name], watched[name]) for name in samples}
    return _tree(case, options, known, machine, rows, differences)


def _peers(case: Case, options: BenchOptions, ours: Side, stack: ExitStack) -> list[Side]:
    if options.peer is None:
        return []
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m2f-bench-"))) / "model"
    if case.what != "post":  # post-processing has no weights
        ours.ask("share", folder=folder)
    precision = options.peer_precision or case.precision
    theirs = replace(case, compile=options.peer_compile, precision=precision, keep_memory=False)
    return [stack.enter_context(side(options.peer, functools.partial(Host, theirs, options.peer, folder)))]


def run_interleaved(
    sides: Sequence[Side], options: BenchOptions, on_round: OnRound
) -> tuple[dict[str, list[TimedRun]], dict[str, list[TimedRun]]]:
    runs: dict[str, dict[str, list[TimedRun]]] = {}
    for phase, count in (("warm-up", options.warm_up), ("timed", options.rounds), ("stages", options.watched)):
        runs[phase] = {each.name: [] for each in sides}
        for number, each in in_turns(sides, count):
            sample = each.ask("run", watched=phase == "stages")
            runs[phase][each.name].append(sample)
            on_round(Round(each.name, phase, number, sample.seconds))
    return runs["timed"], runs["stages"]


def in_turns(sides: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """Yield the number of a round and a side, for all rounds. The order of the sides changes from round to round."""
    for number in range(rounds):
        for each in sides if number % 2 else reversed(sides):
            yield number, each


@dataclass(frozen=True)
class Timed:
    """Timings of a side of a `race`.

    Attributes:
        first: values of the first run: "growth" of memory in MiB (None: unknown), and those of `Work.tell`.
        seconds: wall-clock seconds of each round.
        cpu_seconds: seconds of processor time of each round.
    """

    first: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def race(sides: Mapping[str, Callable[[], Work]], rounds: int) -> dict[str, Timed]:
    """Time the sides alternately, each in its own process.

    Args:
        sides: name → function that makes the work in its process, see `process.Side`.

    Raises:
        M2FError: a side raised it.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(side(name, functools.partial(Timer, make))) for name, make in sides.items()]
        timings = {each.name: Timed(each.ask("start")) for each in workers}
        for _, each in in_turns(workers, rounds):
            seconds, cpu_seconds = each.ask("run")
            timings[each.name].seconds.append(seconds)
            timings[each.name].cpu_seconds.append(cpu_seconds)
    return timings


# --- what comes back --------------------------------------------------------------------------------------------------


def _side(start: dict[str, Any], samples: Sequence[TimedRun], watched: Sequence[TimedRun]) -> dict[str, Any]:
    seconds = [sample.seconds for sample in samples]
    middle = stats.summary(seconds)
    joules = _of(mean, [sample.joules for sample in samples])
    return {
        "seconds": seconds,
        **middle,
        "images_per_second": start["images"] / middle["median"],
        "cpu_seconds": median(sample.cpu_seconds for sample in samples),
        "other_cores": _of(median, [sample.other_cores for sample in samples]),
        "joules_per_image": None if joules is None else joules / start["images"],
        "stages": _stages(watched),
        "memory": start["memory"],
        "allocator": start["machine"]["allocator"],
    }


def _of(middle: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return middle(known) if known else None


def _stages(watched: Sequence[TimedRun]) -> dict[str, float] | None:
    if not watched:
        return None
    names = list(dict.fromkeys(name for sample in watched for name in sample.stages or ()))
    return {name: median((sample.stages or {}).get(name, 0.0) for sample in watched) for name in names}


def _differences(answers: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if len(answers) < 2:
        return None
    ours, theirs = answers
    return {
        name: stats.difference(theirs[name], ours[name])
        if theirs[name].shape == ours[name].shape
        else {"shapes": [list(theirs[name].shape), list(ours[name].shape)]}
        for name in ours
    }


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios peer / ours. Time has an interval; memory has none, because it is measured once."""
    ratios = {"time": stats.ratio(theirs["seconds"], ours["seconds"])}
    for name in ("resident_growth", "resident_peak", "device_peak"):
        key = f"{name}_mib"
        a, b = theirs["memory"][key], ours["memory"][key]
        if a and b:
            ratios[name] = {"value": a / b, "low": None, "high": None, "interval": None}
    return ratios


def _tree(
    case: Case,
    options: BenchOptions,
    known: dict[str, Any],
    machine: dict[str, Any],
    rows: dict[str, Any],
    differences: dict[str, Any] | None,
) -> dict[str, Any]:
    flops = known.pop("flops")
    speed = None if flops is None else flops["total"] / rows[OURS]["median"]
    peer = rows.get(options.peer or "")
    return {
        "schema_version": SCHEMA_VERSION,
        "what": case.what,
        **known,
        "batch": case.batch,
        "compile": case.compile,
        "engine": case.engine,
        "threads": machine["threads"],
        "rounds": options.rounds,
        "warm_up": 1 + options.warm_up,
        "peer": _peer(case, options),
        "protocol": PROTOCOL,
        "machine": machine,
        "sides": rows,
        "ratio": None if peer is None else _ratios(rows[OURS], peer),
        "difference": differences,
        "flops": flops,
        "share_of_peak": speed / known["matmul_peak"] if speed and known["matmul_peak"] else None,
    }


PROTOCOL = (
    "Each side in a process of its own; rounds in turns after the warm-up, the first run among it; device synchronised "
    "around every run; medians, and quartiles as spread; ratios of medians with a 95 % bootstrap interval over rounds, "
    f"with fewer than {stats.SURE} their range; stages from further rounds that wait for the device at each of them; "
    "memory by the first run after a tiny one, or after the one that compiled."
)


def _peer(case: Case, options: BenchOptions) -> dict[str, Any] | None:
    if options.peer is None:
        return None
    return {
        "name": options.peer,
        "compile": options.peer_compile,
        "precision": options.peer_precision or case.precision,
        "batch": 1 if case.what == "predict" else case.batch,
    }

"""Mutated inputs of every target end in a value or in one clear error, and the harness notices when they do not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fuzz.__main__ import targets
from fuzz.harness import Target, replay, run, table

from m2f_cli.errors import DataError

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {target.name: target for target in targets()}
COUNT = 8  # inputs of each target in the default suite, which has to stay short
MORE = 200  # in the slow one; `just fuzz` tries any number


@pytest.mark.parametrize("count", [COUNT, pytest.param(MORE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_read_or_refused(name, count, tmp_path):
    count = max(1, round(count * TARGETS[name].share))
    report = run(TARGETS[name], count, seed=20, keep=tmp_path)
    assert report.tried == count and not report.faults, table([report])


@pytest.mark.parametrize("folder", sorted(CORPUS.iterdir()) if CORPUS.is_dir() else [], ids=lambda path: path.name)
def test_what_once_failed_is_read_or_refused(folder):
    """Each folder of the corpus has the name of its target; in it, a folder for each input."""
    inputs = [next(case.iterdir()) for case in sorted(folder.iterdir())]
    report = replay(TARGETS[folder.name.replace("_", " ")], inputs)
    assert report.tried == len(inputs) and not report.faults, table([report])


# --- the harness itself -----------------------------------------------------------------------------------------------


def _fail(path: Path) -> None:
    raise KeyError(path.name)


def _hang(path: Path) -> None:
    while True:
        pass


def _hang_without_heeding_the_alarm(path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGPROF])
    signal.pause()


def _eat(path: Path) -> None:
    bytearray(3 << 30)


def _die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _refuse(path: Path) -> None:
    raise DataError(f"{path} is bad.")


def _mumble(path: Path) -> None:
    raise DataError("Something is bad.")


@pytest.mark.parametrize(
    ("read", "outcome", "kind"),
    [
        (lambda path: None, "read", None),
        (_refuse, "refused", None),
        (_fail, "traceback", "KeyError in the test itself"),
        (_hang, "hang", "the test itself"),
        pytest.param(_hang_without_heeding_the_alarm, "hang", "does not heed its alarm", marks=pytest.mark.slow),
        (_eat, "memory", "MemoryError in the test itself"),
        (_die, "crash", "SIGSEGV"),
        (lambda path: os._exit(3), "crash", "exit 3"),
        (_mumble, "message", "DataError in the test itself names neither file nor item"),
    ],
)
def test_the_harness_notices_every_kind_of_fault(tmp_path, read, outcome, kind):
    def mutants(rng, folder):
        while True:
            (folder / "input.txt").write_text(str(rng.random()))
            yield "a number", folder / "input.txt"

    count = 1 if outcome == "hang" else 3
    report = run(Target("toy", mutants, read), count, seed=0, seconds=0.2, keep=tmp_path)
    assert dict(report.counts) == {outcome: count}
    assert list(report.kinds) == ([] if kind is None else [(outcome, kind)])
    assert len(list(tmp_path.rglob("input.txt"))) == (0 if kind is None else count)
    assert (f"{count} x {outcome}: {kind}" in table([report])) == (kind is not None)


def test_a_seed_gives_the_same_inputs_again():
    seen = []
    for seed in (0, 0, 1):

        def mutants(rng, folder):
            while True:
                yield str(rng.random()), folder / "x"

        seen.append(next(iter(run(Target("toy", mutants, _fail), 3, seed=seed).kinds.values())).description)
    assert seen[0] == seen[1] != seen[2]


def test_a_mutator_that_fails_is_said():
    def mutants(rng, folder):
        yield "first", folder / "x"
        raise LookupError("no more")

    with pytest.raises(RuntimeError, match="(?s)mutator of toy failed.*LookupError: no more"):
        run(Target("toy", mutants, lambda path: None), 2, seed=0)

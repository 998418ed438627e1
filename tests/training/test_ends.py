"""However a run ends, what its finished steps left is saved; and it goes on bit by bit as if it had not ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.tiny import settings

from m2f_cli.errors import DataError, M2FError
from m2f_cli.inference.load_network import load_model
from m2f_cli.ops.cpu import conv
from m2f_cli.runtime.locks import locked
from m2f_cli.training import loop, run
from m2f_cli.training import resume as state
from m2f_cli.training.data import open_splits
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.parts import Parts
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")
CHANGES = ("train.checkpoint_every=100", "train.batch=2", "train.ema_decay=0.9")
WAYS_TO_STOP = ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)]


def assert_same(one, other, where="") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert one == other, where


def kept(folder: Path) -> dict:
    return state.read(folder / "checkpoints" / "resume.pt")


def lines(folder: Path) -> list[tuple]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(e["kind"], e["iteration"], e.get("loss"), e.get("pq")) for e in entries]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert_same(kept(one), kept(other))
    for name in ("last", "best"):
        states = [load_model(each / "checkpoints" / f"{name}.safetensors").model.state_dict() for each in (one, other)]
        assert_same(*states)
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody disturbs, with evaluations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.start(settings(*CHANGES, "train.eval_every=2"), folder, OPTIONS)
    return folder


def start(folder: Path, listener: Listener | None = None, *, resume: bool = False, data=None, **options):
    """As in a process of its own: what is tried out once per process is tried out again."""
    conv.fused_kernel_available.cache_clear()
    chosen = replace(OPTIONS, resume=resume, **options)
    return run.start(settings(*CHANGES, "train.eval_every=2"), folder, chosen, listener, data=data)


def test_a_sentence_about_the_end_and_how_to_go_on_and_then_the_same_weights(tmp_path, whole):
    """An image vanishes while the run reads it."""
    gone = []

    class Vanishing:
        def __init__(self, read):
            self.read = read

        def __call__(self):
            if gone:
                raise DataError("x.jpg cannot be read: No such file or directory.")
            return self.read()

    def vanish(step):
        gone.extend([True] * (step.iteration == 2))

    train, val = open_splits(settings(), None, None, [])
    records = [replace(record, read_image=Vanishing(record.read_image)) for record in train.records]
    notes = []
    with pytest.raises(DataError, match=r"^scene-0.*x.jpg cannot be read: No such file or directory.$"):
        listener = Listener(on_note=notes.append, on_step=vanish)
        start(tmp_path / "run", listener, data=(replace(train, records=records), val))
    done = kept(tmp_path / "run")["iteration"]
    assert done == 3
    assert notes == [f"Saved after {done} iterations. To go on: m2f train --out {tmp_path / 'run'} --resume."]
    gone.clear()
    assert start(tmp_path / "run", resume=True).iteration == 6
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["memory", "ctrl-c"])
def test_an_error_in_the_middle_of_a_step_costs_that_step_alone(tmp_path, whole, monkeypatch, error):
    """The forward pass has drawn its random numbers by then."""
    real, calls = loop.losses_of, []

    def sometimes(*arguments):
        losses = real(*arguments)
        calls.append(1)
        if len(calls) == 4:
            raise error
        return losses

    notes = []
    monkeypatch.setattr(loop, "losses_of", sometimes)
    with pytest.raises(type(error)):
        start(tmp_path / "run", Listener(on_note=notes.append))
    assert kept(tmp_path / "run")["iteration"] == 3 and "Saved after 3 iterations" in notes[0]
    start(tmp_path / "run", resume=True)
    assert_equal_runs(whole, tmp_path / "run")


def test_weights_that_are_half_changed_are_not_saved(tmp_path, whole, monkeypatch):
    real, calls = loop.apply, []

    def half(parts, values, norm):
        calls.append(1)
        if len(calls) == 5:
            next(parts.model.parameters()).data.add_(1)
            raise RuntimeError("in the middle")
        return real(parts, values, norm)

    monkeypatch.setattr(loop, "apply", half)
    notes = []

    def at_two(step):
        if step.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    start(tmp_path / "run", Listener(on_step=at_two))
    with pytest.raises(RuntimeError, match="in the middle"):
        start(tmp_path / "run", Listener(on_note=notes.append), resume=True)
    assert "Saved after 2 iterations" in notes[-1] and "weights were changing" in notes[-1]
    monkeypatch.setattr(loop, "apply", real)
    start(tmp_path / "run", resume=True)
    assert_equal_runs(whole, tmp_path / "run")


def test_running_statistics_and_random_numbers_come_back():
    parts = Parts(None, torch.nn.BatchNorm2d(2), None, None, None, None, None, torch.device("cpu"), 1)
    last = state.LastStep(parts)
    before, random = {k: v.clone() for k, v in parts.model.state_dict().items()}, torch.get_rng_state()
    parts.model(torch.rand(1, 2, 4, 4))
    assert not torch.equal(parts.model.running_mean, before["running_mean"])
    last.bring_back()
    assert_same(parts.model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("at", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, whole, at):
    """Schedulers give seconds. The evaluation is done when the run goes on."""
    train, val = open_splits(settings(), None, None, [])
    steps = []

    class Asking:
        def __init__(self, read):
            self.read = read

        def __call__(self):
            if len(steps) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.read()

    records = [replace(val.records[0], read_image=Asking(val.records[0].read_image)), *val.records[1:]]
    outcome = start(tmp_path / "run", Listener(on_step=steps.append), data=(train, replace(val, records=records)))
    assert (outcome.stopped, outcome.iteration) == ("SIGTERM", at)
    assert lines(tmp_path / "run")[-1][:2] == ("train", at - 1)
    assert start(tmp_path / "run", resume=True).stopped is None
    assert_equal_runs(whole, tmp_path / "run")


def test_a_terminal_that_is_closed_does_not_lose_the_run(tmp_path):
    """After SIGHUP nothing can be printed."""

    def broken(_):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        start(tmp_path / "run", Listener(on_step=broken, on_note=broken))
    assert kept(tmp_path / "run")["iteration"] == 1


def test_free_some_space_is_said_of_a_full_disk_alone(tmp_path, monkeypatch):
    def unwritable(number):
        def save(*_):
            raise OSError(number, os.strerror(number))

        return save

    monkeypatch.setattr(torch, "save", unwritable(28))
    with pytest.raises(M2FError, match=r"Cannot write .*resume.pt: No space left on device. Free some space."):
        state.write(tmp_path / "resume.pt", {})
    monkeypatch.setattr(torch, "save", unwritable(13))
    with pytest.raises(M2FError, match=r"Cannot write .*resume.pt: Permission denied.$"):
        state.write(tmp_path / "resume.pt", {})
    assert not list(tmp_path.iterdir())


def test_a_worker_that_dies_is_told_of_in_one_sentence():
    from m2f_cli.data.loader import of_worker

    error = of_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert str(error) == (
        "A process that reads images has died: DataLoader worker (pid 7) is killed by signal: Killed. "
        "If the memory was not enough, pass a smaller --workers."
    )
    assert of_worker(RuntimeError("something else")) is None and of_worker(ValueError("DataLoader worker")) is None


# --- real processes ---------------------------------------------------------------------------------------------------

SCRIPT = (
    f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    "import torch; torch.set_num_threads(1)\n"
    "from pathlib import Path\n"
    "from training.tiny import settings\n"
    "from m2f_cli.training import run\n"
    "options = run.TrainOptions(init='random', device='cpu', workers=2)\n"
    "changes = ('train.iterations=100000', 'train.batch=2', 'train.checkpoint_every=100000')\n"
    "print(run.start(settings(*changes), Path(sys.argv[1]), options).stopped)\n"
)


def begun(folder: Path) -> subprocess.Popen:
    """A training with workers in a process group of its own, when it has done some steps."""
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while child.poll() is None and not ((folder / "metrics.jsonl").exists() and len(lines(folder)) > 2):
        time.sleep(0.05)
    return child


@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
@pytest.mark.slow  # the tests above send it to the process alone, in a hundredth of the time
@pytest.mark.parametrize("way", WAYS_TO_STOP)
def test_a_signal_to_the_whole_group_ends_in_a_checkpoint(tmp_path, way):
    """SLURM, systemd and `timeout` send it to the workers, too; a terminal that is closed likewise."""
    child = begun(tmp_path / "run")
    os.killpg(child.pid, signal.Signals[way])
    out, err = child.communicate()
    assert (child.returncode, out.strip()) == (0, way), err[-2000:]
    assert kept(tmp_path / "run")["iteration"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_no_worker_outlives_a_run_that_is_killed(tmp_path):
    """Workers ignore signals; they end because nobody asks them any more. The folder is free at once."""
    child = begun(tmp_path / "run")
    workers = [
        int(pid)
        for task in Path(f"/proc/{child.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    assert len(workers) >= 2
    child.kill()
    child.communicate()
    with locked(tmp_path / "run", "The next run"):
        pass
    while any(_runs(worker) for worker in workers):
        time.sleep(0.2)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

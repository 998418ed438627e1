"""Jobs that are started again: their own run goes on without --resume, and nobody else's does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m2f_cli.training import restart
from m2f_cli.training import resume as state

COMMAND = ["m2f", "train", "--preset", "tiny"]
VARIABLES = (
    "M2F_JOB",
    "SLURM_JOB_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_RESTART_COUNT",
    "GROUP_WORLD_SIZE",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "RANK",
    "WORLD_SIZE",
)
ELASTIC = {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
TINY = [
    "--preset=tiny",
    "--init=random",
    "--device=cpu",
    "--workers=1",
    "--batch=4",
    "--out=run",
    "--json",
    *(
        f"--set={pair}"
        for pair in (
            "data.scenes.train=6",
            "data.scenes.val=1",
            "data.scenes.size=[64, 96]",
            "train.loss.num_points=32",
            "train.iterations=12",
            "train.checkpoint_every=5",
            "train.eval_every=0",
            "train.schedule.warmup_iterations=0",
        )
    ),
]


@pytest.fixture
def began(tmp_path, monkeypatch):
    """`began(**variables)`: a run that a start of a job with these variables has begun."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def begin(**variables: str) -> Path:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        record = {"command": COMMAND, "job": restart.job(), "options": {}}
        (tmp_path / "env.json").write_text(json.dumps(record))
        (tmp_path / "config.yaml").write_text("")
        return tmp_path

    return begin


def at(attempt: int, job: str = "x") -> dict[str, str]:
    """What torchrun gives to a worker on a single machine."""
    return {"TORCHELASTIC_RESTART_COUNT": str(attempt), "TORCHELASTIC_ERROR_FILE": f"/tmp/{job}/attempt_{attempt}/0/e"}


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({**ELASTIC, **at(0)}, at(1)),
        ({"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}, {}),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_RESTART_COUNT": "1"}),
        ({"M2F_JOB": "mine"}, {}),
    ],
    ids=["torchrun", "two nodes", "Slurm", "M2F_JOB"],
)
def test_a_job_that_was_restarted_goes_on_with_its_own_run_alone(began, monkeypatch, first, later):
    folder = began(**first)
    assert restart.is_restarted(folder, COMMAND) == (not later), "the same start, unless every start counts"
    for name, value in later.items():
        monkeypatch.setenv(name, value)
    assert restart.is_restarted(folder, COMMAND)
    assert not restart.is_restarted(folder, [*COMMAND, "--seed", "1"]), "another command"
    assert not restart.is_restarted(folder / "other", COMMAND), "no run"
    other = {"M2F_JOB": "other", "SLURM_JOB_ID": "8", "TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_ERROR_FILE": "/y/"}
    for name in other.keys() & {*first, *later}:
        monkeypatch.setenv(name, other[name])
    assert not restart.is_restarted(folder, COMMAND), "another job"


def test_nodes_without_an_identity_of_their_job_never_go_on(began, monkeypatch):
    folder = began(GROUP_WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restart.job() == {} and not restart.is_restarted(folder, COMMAND)


def test_a_run_of_an_older_version_does_not_go_on(began):
    folder = began(M2F_JOB="mine")
    (folder / "env.json").write_text(json.dumps({"command": COMMAND, "options": {}}))
    assert not restart.is_restarted(folder, COMMAND)


def torchrun(folder: Path, *options: str, **variables: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    launcher = [sys.executable, "-m", "torch.distributed.run", *(options or ["--nproc-per-node=2"])]
    return subprocess.Popen(
        [*launcher, "-m", "m2f_cli", "train", *TINY],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of(launcher: subprocess.Popen, rank: int) -> int:
    """The number of the process with a rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    for number in map(int, listed.stdout.split()):
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{number}/environ').read_text()}\0":
            return number
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The state at the end of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("untouched") / "job"
    launcher = torchrun(folder)
    _, err = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, err[-3000:]
    return state.read(folder / "run" / "checkpoints" / "resume.pt")


def check_end(run: Path, untouched: dict) -> None:
    """Everything that training changes is as without a disturbance, and the log has each step once."""
    found = state.read(run / "checkpoints" / "resume.pt")
    assert found["iteration"] == untouched["iteration"] == 12
    for kind in ("model", "optimizer", "random"):
        torch.testing.assert_close(found[kind], untouched[kind], rtol=0, atol=0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == [*range(12)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_costs_nothing(tmp_path, untouched, rank):
    """The end is that of the run without the kill, exactly: a sum of two processes does not depend on their order.

    Without its first process, the run goes on from the last checkpoint. Without another one, the first process saves
    the last finished step before torchrun starts both again.
    """
    launcher = torchrun(tmp_path / "job", "--nproc-per-node=2", "--max-restarts=1")
    run = tmp_path / "job" / "run"
    while not (run / "checkpoints" / "resume.pt").exists() and launcher.poll() is None:
        time.sleep(0.05)
    os.kill(process_of(launcher, rank), signal.SIGKILL)
    out, err = launcher.communicate(timeout=150)
    assert launcher.returncode == 0, err[-3000:]
    assert json.loads(out[out.rindex('{\n  "schema') :])["iteration"] == 12, "the last start that prints"
    assert "This job was restarted: the run run goes on, as with --resume." in err
    check_end(run, untouched)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
def test_two_machines_go_on_together(tmp_path, untouched):
    """Two launchers find each other at an address; only that of the process that is killed counts a new start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-id=a", "--rdzv-backend=c10d", where]
    options.append("--local-addr=127.0.0.1")
    machines = [torchrun(tmp_path, *options, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") for _ in range(2)]
    run = tmp_path / "run"
    while not (run / "checkpoints" / "last.safetensors").exists() and machines[0].poll() is None:
        time.sleep(0.05)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(machines[1].pid)], capture_output=True, text=True)
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    texts = [machine.communicate(timeout=150)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "".join(texts)[-3000:]
    check_end(run, untouched)

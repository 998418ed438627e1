"""Several processes for real, from the command line, on a CPU with gloo: --devices, torchrun, two nodes."""

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

from m2f_cli.inference.load_network import load_model
from m2f_cli.training import resume as state

SMALL = [
    "--preset",
    "tiny",
    "--init",
    "random",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--batch",
    "4",
    "--json",
    *(
        word
        for pair in (
            "data.scenes.train=6",
            "data.scenes.val=1",
            "data.scenes.size=[64, 96]",
            "train.loss.num_points=32",
            "train.iterations=3",
            "train.checkpoint_every=2",
            "train.schedule.warmup_iterations=0",
        )
        for word in ("--set", pair)
    ),
]
M2F = [sys.executable, "-m", "m2f_cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(command: list[str], folder: Path, **options) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(child: subprocess.Popen) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


def check_run(folder: Path, iterations: int) -> None:
    """It is written once, by one process, and whole."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == list(range(iterations))
    assert [line["iteration"] for line in lines if line["kind"] == "val"] == [iterations]
    assert state.read(folder / "checkpoints" / "resume.pt")["iteration"] == iterations
    assert all(tensor.isfinite().all() for tensor in load_model(folder).model.state_dict().values())
    assert json.loads((folder / "env.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_train_one_run(tmp_path):
    """Two processes, one image to evaluate: the second has none, and nobody waits for it."""
    code, out, err = finish(start([*M2F, "train", *SMALL, "--devices", "2", "--out", "run"], tmp_path))
    assert code == 0, err[-3000:]
    assert json.loads(out)["iteration"] == 3, "one process alone prints"
    assert err.count("iterations of 4 images (2 x 1 x 2)") == 1 and err.count("evaluated after 3") == 1
    assert "(1 images" in err
    check_run(tmp_path / "run", 3)


@pytest.mark.slow
def test_an_error_in_all_processes_has_its_own_code(tmp_path):
    code, _, err = finish(start([*M2F, "train", *SMALL, "--devices", "2", "--batch", "3"], tmp_path))
    assert code == 2 and "A batch of 3 images cannot be shared by 2 processes" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["launcher", "group"])
def test_stopped_and_resumed(tmp_path, to_all):
    """SIGTERM to the process that launched, or to the whole group: the first process saves after the step in progress,
    and they go on another time."""
    command = [*M2F, "train", *SMALL, "--devices", "2", "--out", "run", "--set", "train.iterations=400"]
    command[command.index("--workers") + 1] = "1"
    child = start(command, tmp_path, start_new_session=True)
    while not (tmp_path / "run" / "checkpoints" / "resume.pt").exists() and child.poll() is None:
        time.sleep(0.2)
    if to_all:
        os.killpg(child.pid, signal.SIGTERM)
    else:
        child.send_signal(signal.SIGTERM)
    code, _, err = finish(child)
    assert code in (130, 143) and "bug in m2f" not in err, err[-3000:]
    done = state.read(tmp_path / "run" / "checkpoints" / "resume.pt")["iteration"]
    assert 0 < done < 400
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("iterations: 400", f"iterations: {done + 2}"))
    again = [*M2F, "train", "--out", "run", "--resume", "--devices", "2", "--device", "cpu", "--json"]
    code, out, err = finish(start(again, tmp_path))
    assert code == 0, err[-3000:]
    assert json.loads(out)["iteration"] == done + 2
    check_run(tmp_path / "run", done + 2)


@pytest.mark.slow
def test_torchrun_starts_two_processes(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "m2f_cli", "train", *SMALL, "--out", "run"]
    code, out, err = finish(start(command, tmp_path))
    assert code == 0, err[-3000:]
    assert json.loads(out)["iteration"] == 3
    check_run(tmp_path / "run", 3)


@pytest.mark.slow
def test_two_nodes_find_each_other(tmp_path):
    """Two launchers that find each other at an address, as on two machines with a common folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    nodes = [
        start([*TORCHRUN, *where, "--node-rank", str(rank), "-m", "m2f_cli", "train", *SMALL, "--out", "run"], tmp_path)
        for rank in range(2)
    ]
    (code, out, err), (other_code, other_out, other_err) = map(finish, nodes)
    assert code == other_code == 0, err[-3000:] + other_err[-3000:]
    assert json.loads(out)["iteration"] == 3 and other_out == ""
    check_run(tmp_path / "run", 3)

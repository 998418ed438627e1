"""Nobody is contacted: each command runs with local weights and data under an audit hook that watches the sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.folders import write_random_image

from m2f_cli import cli, weights
from m2f_cli.errors import Unreachable

ROOT = Path(__file__).resolve().parents[1]
# Python imports it in each process that a command starts, too.
WATCH = """
import json, os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        where = arguments[1] if len(arguments) > 1 else None
        if isinstance(where, (str, bytes)) or where is None:  # a socket of this machine alone, as worker processes use
            return
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"):
        return
    with open(os.environ["WATCHED"], "a") as file:
        file.write(json.dumps([event, repr(arguments)]) + "\\n")
sys.addaudithook(watch)
"""
RUN = """
import json, sys
from m2f_cli import cli
if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        code = cli.run(arguments, process=cli.OWN_PROCESS)
        if code:
            sys.exit(f"{arguments} ended with {code}")
"""
NUCLEI = str(ROOT / "m2f_cli" / "dataset_tools" / "samples" / "nuclei")
IMAGE = str(sorted(Path(NUCLEI).glob("images/train/*.png"))[0])
CPU = ["--device", "cpu"]
VARIABLES = ("M2F_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE")
TINY = [
    *("--set", "train.iterations=2", "--set", "train.batch=2", "--set", "train.loss.num_points=64"),
    *("--set", "model.backbone.depth=18", "--set", "model.pixel_decoder.num_layers=1"),
    *("--set", "data.scenes.train=4", "--set", "data.scenes.val=2", "--set", "data.scenes.size=[64,96]"),
]
TRAIN = ["train", "--preset", "tiny", *TINY, "--init", "random", "--out", "run", "--workers", "1", *CPU]
COMMANDS = [
    TRAIN,
    ["train", "--resume", "--out", "run", *CPU],
    ["eval", "--model", "run", "--limit", "1", "--out", "ev", *CPU],
    ["data", "sample", "nuclei", "--out", "sample"],
    ["data", "check", NUCLEI, "--split", "val"],
    ["data", "view", NUCLEI, "--out", "sheet.jpg"],
    ["data", "split", NUCLEI, "split", "--split", "train", "--split", "val", "--val", "0.5"],
    ["data", "convert", NUCLEI, "converted", "--to", "coco-panoptic"],
    ["predict", IMAGE, "--model", "run", "--out", "pr", *CPU],
    ["export", "--model", "run", "--format", "safetensors", "--out", "x.safetensors"],
    ["presets", "list"],
    ["presets", "show", "coco-panoptic-r50"],
    ["doctor"],
]
SLOW = [
    ["bench", "--preset", "tiny", "--what", "image", "--size", "64", "96", "--rounds", "1", *CPU],
    ["demo", "--iterations", "2", "--images", "1"],
    ["export", "--model", "demo/run", "--format", "onnx", "--out", "x.onnx"],
]


def run_watched(folder: Path, code: str, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, list]:
    """Run code in a process of its own that is watched. Return what it did, and its events."""
    (folder / "watch").mkdir(exist_ok=True)
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    log = folder / "watched"
    log.write_text("")
    hidden = {"M2F_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    path = os.pathsep.join(map(str, (folder / "watch", ROOT, ROOT / "tests")))
    environment |= {"PYTHONPATH": path, "WATCHED": str(log), "M2F_HOME": str(folder / "home"), **variables}
    (folder / "program.py").write_text(code)
    command = [sys.executable, str(folder / "program.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done, [json.loads(line) for line in log.read_text().splitlines()]


def test_no_command_contacts_anybody(tmp_path):
    done, events = run_watched(tmp_path, RUN, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not events


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW, ids=lambda command: command[0])
def test_no_slow_command_contacts_anybody(tmp_path, command):
    if command[0] == "export":
        pytest.importorskip("onnxruntime", reason="needs the extra m2f-cli[onnx]")
    before = [["demo", "--iterations", "2", "--images", "1", "--out", "demo"]] if command[0] == "export" else []
    done, events = run_watched(tmp_path, RUN, json.dumps([*before, command]))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not events


def test_the_hook_sees_what_a_download_does(tmp_path):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/x')"
    done, events = run_watched(tmp_path, code, http_proxy="", HTTP_PROXY="")
    seen = {event for event, _ in events}
    assert "Connection refused" in done.stderr and {"urllib.Request", "socket.getaddrinfo", "socket.connect"} <= seen


@pytest.mark.parametrize("how", ["--offline", "M2F_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_a_missing_file_is_told_with_its_place(tmp_path, how, monkeypatch, capsys):
    for name in VARIABLES:
        monkeypatch.setenv(name, "1" if name == how else "")
    monkeypatch.setenv("M2F_HOME", str(tmp_path))
    for call in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, call, lambda *_: pytest.fail("somebody was contacted"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    image = write_random_image(tmp_path / "a.png")
    options = [how] if how.startswith("-") else []
    assert cli.run([*options, "predict", str(image), "--model", "ade20k-r50", "--out", str(tmp_path / "o")]) == 4
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    name = "mask2former_r50_8xb2-160k_ade20k-512x512_20221204_000055-2d1f55f1.pth"
    assert f"/{name} is not here yet, and the network is switched off (--offline, M2F_OFFLINE" in error
    assert f"put it at {tmp_path / 'weights' / name}" in error


def test_offline_a_missing_repository_is_told_with_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    monkeypatch.setenv("M2F_HOME", str(tmp_path))
    with pytest.raises(Unreachable, match=r"fetch config.json and model.safetensors elsewhere .* give m2f the folder"):
        weights.load("nobody/nothing")


def test_offline_is_told_to_other_packages_and_to_processes(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert cli.run(["--offline", "presets", "list"]) == 0
    assert [os.environ[name] for name in ("M2F_OFFLINE", "HF_HUB_OFFLINE", "WANDB_MODE")] == ["1", "1", "offline"]

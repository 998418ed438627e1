"""The page that `m2f` alone shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from m2f_cli import cli
from m2f_cli.commands import start


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to be in, on a machine without a GPU and without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "m2f"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(start, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(start, "GPU_FILES", tmp_path / "dev")
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def page(capsys):
    assert cli.run([]) == 0
    shown, said = capsys.readouterr()
    assert said == "" and "\x1b" not in shown and shown.count("\n") <= 15
    return shown


def test_a_new_user_sees_a_cpu_and_first_steps(home, capsys):
    shown = page(capsys)
    assert "Device:    CPU, " in shown and "Models:    none" in shown and "Last run:  none" in shown
    assert "  m2f predict YOUR_IMAGES\n" in shown and "  m2f demo\n" in shown


def test_what_is_here_is_in_the_lines_to_type(home, capsys):
    (home / "my cat.jpg").touch()
    (home / "m2f" / "weights").mkdir(parents=True)
    (home / "m2f" / "weights" / "model_final_9fd0ae.pkl").touch()
    (home / "hub" / "models--facebook--mask2former-swin-large-ade-panoptic").mkdir(parents=True)
    shown = page(capsys)
    assert "Models:    ade20k-panoptic-swin-l, coco-panoptic-swin-t\n" in shown
    assert "  m2f predict 'my cat.jpg' --model ade20k-panoptic-swin-l\n" in shown


def test_the_last_run_goes_on_or_is_used(home, capsys):
    for name in ("train/old", "new"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "config.yaml").touch()
    os.utime(home / "runs" / "train" / "old" / "config.yaml", (1, 1))
    shown = page(capsys)
    assert "Last run:  runs/new\n" in shown and "  m2f train --out runs/new --resume\n" in shown
    (home / "runs" / "new" / "checkpoints").mkdir()
    (home / "runs" / "new" / "checkpoints" / "best.safetensors").touch()
    shown = page(capsys)
    assert "--model runs/new\n" in shown and "  m2f export --model runs/new\n" in shown and "--resume" not in shown


def test_gpus_are_named_as_the_driver_names_them(home):
    for number in (0, 1):
        (home / "gpus" / str(number)).mkdir(parents=True)
        (home / "gpus" / str(number) / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    assert start.device() == "2 x NVIDIA H200"
    (home / "gpus" / "1" / "information").unlink()
    assert start.device() == "NVIDIA H200"


def test_a_gpu_without_a_description_counts(home):
    (home / "dev").mkdir()
    (home / "dev" / "nvidia0").touch()
    (home / "dev" / "nvidiactl").touch()
    assert start.device() == "NVIDIA GPU"


def test_the_page_is_there_at_once():
    code = (
        "import json, sys; from m2f_cli.cli import run; code = run([]); "
        "print(json.dumps([code, [name for name in ('torch', 'numpy', 'PIL') if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]

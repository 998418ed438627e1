"""Whatever writes a folder keeps a second process out of it, and leaves nothing of the lock behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training.tiny import settings

from m2f_cli import cli
from m2f_cli.dataset_tools.convert import write as writing
from m2f_cli.dataset_tools.prepare import run as preparing
from m2f_cli.errors import ConfigError
from m2f_cli.runtime.locks import is_lock, locked, staged
from m2f_cli.training import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run.start(settings("train.iterations=1", "train.batch=2"), folder, run.TrainOptions(init="random", device="cpu"))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for kind, value in (("images", 90), ("labels", 1)):
        (tmp_path / "data" / kind / "train").mkdir(parents=True)
        shape = (64, 96, 3) if kind == "images" else (64, 96)
        Image.fromarray(np.full(shape, value, np.uint8)).save(tmp_path / "data" / kind / "train" / "a.png")
    (tmp_path / "data" / "classes.txt").write_text("x\ny")
    return tmp_path


def commands(trained: Path) -> dict[str, list[str]]:
    model = ["--model", str(trained), "--device", "cpu"]
    return {
        "predict": ["predict", "data/images/train/a.png", *model, "--out", "out"],
        "eval": ["eval", *model, "--limit", "1", "--out", "out"],
        "demo": ["demo", "--out", "out"],
        "convert": ["data", "convert", "data", "out", "--to", "label-maps"],
        "export": ["export", "--model", str(trained), "--format", "safetensors", "--out", "out.safetensors"],
    }


@pytest.mark.parametrize("name", ["predict", "eval", "demo", "convert", "export"])
def test_a_second_process_is_refused(here, trained, capsys, name):
    out = here / ("out.safetensors" if name == "export" else "out")
    hold = staged if name in ("convert", "export") else locked
    with hold(out, "Somebody"):
        assert cli.run(commands(trained)[name]) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"is at work in {out.name} already (process {os.getpid()} on " in error
    assert [path.name for path in here.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["predict", "eval", "convert", "export"])
def test_the_first_one_leaves_no_lock(here, trained, name):
    (here / "out").mkdir(exist_ok=True)
    if name in ("predict", "eval"):
        for left in (".m2f.lock", ".m2f.lock.json", ".1-2.part"):  # of a process that was killed
            (here / "out" / left).write_text("")
    assert cli.run(commands(trained)[name]) == 0
    assert not [path for path in here.rglob("*") if is_lock(path) or path.name.endswith(".part")]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(ConfigError, match="out exists already"), writing.new_folder(tmp_path / "out") as part:
        (part / "ours").write_text("")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("precious")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_conversion_killed_at_its_very_end_leaves_nothing(tmp_path):
    """It has its name already, so that each further start is refused."""
    for folder in ("out", ".out.part", "other", ".other.part"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / (".m2f.lock" if folder.startswith(".") else "image.png")).write_text("")
    with pytest.raises(ConfigError, match="out exists already"), writing.new_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.part", "other", "out"]
    with locked(tmp_path / ".other.part", "A living one"), pytest.raises(ConfigError, match="other exists already"):
        writing.refuse_existing(tmp_path / "other")
    assert (tmp_path / ".other.part").is_dir()


def test_preparations_take_turns(tmp_path):
    refused = pytest.raises(ConfigError, match="A preparation is at work")
    with locked(tmp_path, "Somebody"), refused, preparing.alone_in(tmp_path):
        pass

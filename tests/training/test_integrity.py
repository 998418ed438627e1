"""A run whose files were damaged is not gone on with; one of an older m2f, without checksums, is."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.tiny import settings

from m2f_cli import cli
from m2f_cli.errors import M2FError, WeightsError
from m2f_cli.training import resume as state
from m2f_cli.training import run
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")
RESUME = replace(OPTIONS, resume=True)
CHANGES = ("train.batch=2", "train.iterations=2", "train.checkpoint_every=2")
FILES = ("checkpoints/resume.pt", "config.yaml", "env.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.start(settings(*CHANGES), folder, OPTIONS)
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_told_before_anything_is_trained(copied, name, share, capsys):
    flip(copied / name, int(share * (copied / name).stat().st_size))
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert cli.run(["train", "--resume", "--out", str(copied), "--device", "cpu"]) in (2, 3, 4)
    captured = capsys.readouterr()
    [error] = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert str(copied / name) in error and "does not fit its checksum" in error and "bug" not in error
    assert re.search("Copy it again|Copy the file again|Remove it", error)
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_each_part_of_a_state_is_covered(whole, tmp_path):
    path = tmp_path / "resume.pt"
    shutil.copy(whole / FILES[0], path)
    size = path.stat().st_size
    places = [0, 3, 30, *range(50, size, size // 16), *range(size - 100, size, 13), size - 1]
    for at in places:
        flip(path, at, at % 8)
        with pytest.raises(WeightsError, match=r"resume.pt is damaged: it does not fit its checksum\. Copy it again"):
            state.read(path)
        flip(path, at, at % 8)
    assert state.read(path)["iteration"] == 2


def test_a_run_of_an_older_version_goes_on_and_says_once_that_nothing_is_checked(copied):
    path = copied / FILES[0]
    torch.save(torch.load(path, weights_only=False), path)
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text[: text.rindex("# crc32")])
    for name in ("env.json", "metrics.jsonl"):
        text = (copied / name).read_text()
        (copied / name).write_text(re.sub(r', "crc32": "[0-9a-f]{8}"}', "}", text))
        assert "crc32" not in (copied / name).read_text()
    notes: list[str] = []
    outcome = run.start(settings(), copied, RESUME, Listener(on_start=lambda started: notes.extend(started.notes)))
    assert outcome.iteration == 2
    [note] = [text for text in notes if "checksum" in text]
    assert all(name in note for name in FILES)


def test_a_whole_run_says_nothing_of_checksums(copied):
    notes: list[str] = []
    run.start(settings(), copied, RESUME, Listener(on_start=lambda started: notes.extend(started.notes)))
    assert not [text for text in notes if "checksum" in text]


def test_a_configuration_changed_on_purpose_counts_without_its_last_line(copied):
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("iterations: 2", "iterations: 3"))
    with pytest.raises(M2FError, match="if you changed it on purpose, remove its last line"):
        run.start(settings(), copied, RESUME)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert run.start(settings(), copied, RESUME).iteration == 3
    steps = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [step["iteration"] for step in steps if step["kind"] == "train"] == [0, 1, 2]

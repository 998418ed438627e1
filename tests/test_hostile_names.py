"""Names that drive a terminal, turn its writing or look like markup are shown as they are, by every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers.folders import annotation, image_entry, rectangle, write_json, write_random_image
from training.tiny import settings

from m2f_cli import cli, weights
from m2f_cli.config import presets as config
from m2f_cli.model import build
from m2f_cli.structures.categories import Category

EVIL = "e\x1b]0;t\x07\x1b[45m\x9b1m\u202eg\u200f\r[red]x[b]"
CLASSES = (Category(1, f"{EVIL}1", True, (1, 2, 3)), Category(2, f"{EVIL}2", True, (4, 5, 6)))
FORBIDDEN = ("\x1b]", "\x07", "\x1b[45m", "\x9b", "\u202e", "\u200f", "\r[red")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no files of such names")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data set, a model, a preset and a folder of images, all with such names."""
    home = tmp_path_factory.mktemp("home")
    images = [f"{EVIL}-{number}.jpg" for number in range(3)]
    for number, name in enumerate(images):
        write_random_image(home / "data" / "val" / name, (64, 96), seed=number)
    (home / "data" / "val" / images[2]).write_bytes(b"\xff\xd8\xffbroken")
    tree = {
        "images": [image_entry(number, name, (64, 96)) for number, name in enumerate(images)],
        "annotations": [annotation(n, n, 1 + n % 2, [rectangle(10, 10, 60, 60)]) for n in range(3)],
        "categories": [{"id": each.id, "name": each.name} for each in CLASSES],
    }
    write_json(home / "data" / "annotations" / "instances_val.json", tree)
    torch.manual_seed(0)
    model = build(settings().model, len(CLASSES))
    weights.save(home / f"{EVIL}.safetensors", model.state_dict(), settings(), CLASSES)
    (home / f"{EVIL}.yaml").write_text(config.dump(settings().model_copy(update={"summary": EVIL})))
    (home / "unknown.yaml").write_text(f'extends: tiny\n"e\\e[45m{chr(92)}u202e[red]x[b]": 1\n')
    return home


MODEL, PRESET = f"{EVIL}.safetensors", f"{EVIL}.yaml"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["predict", "data/val", "--model", MODEL, "--out", EVIL, "--device", "cpu"], 3),
        (["eval", "--model", MODEL, "--data", "data", "--metric", "ap", "--per-class", "--device", "cpu"], 3),
        (["data", "check", "data"], 3),
        (["presets", "show", PRESET], 0),
        (["predict", f"{EVIL}/none"], 3),
        (["predict", "data/val", "--model", f"{EVIL}/none.pth"], 4),
        (["eval", "--model", MODEL, "--data", EVIL], 3),
        (["train", "--preset", "tiny", "--set", f"{EVIL}=1"], 2),
        (["train", "--preset", "unknown.yaml"], 2),
        (["presets", "show", EVIL], 2),
        (["export", "--model", MODEL, "--format", EVIL, "--out", "x"], 2),
        (["data", "convert", "data", EVIL, "--to", EVIL], 2),
        ([EVIL], 2),
        (["predict", f"--{EVIL}"], 2),
        (["presets", "show", "tiny", EVIL], 2),
        (["train", "--resume", "--out", EVIL], 2),
    ],
    ids=lambda value: " ".join(map(ascii, value[:2])) if isinstance(value, list) else "",
)
def test_hostile_names(home, arguments, code, terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in home.iterdir():
        Path(path.name).symlink_to(path)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("M2F_OFFLINE", "1")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.run(arguments) == code
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert not [letters for letters in FORBIDDEN if letters in text]
    assert "bug in m2f" not in text
    assert "[45m" in text and "[red]x[b]" in text


def test_a_traceback_drives_nothing(monkeypatch, capsys):
    monkeypatch.setenv("M2F_DEBUG", "1")
    assert cli.run(["predict", f"{EVIL}/none"]) == 3
    text = capsys.readouterr().err
    assert "Traceback" in text and not [letters for letters in FORBIDDEN if letters in text]

"""m2f predict --tta and --tile, over a real network that is small."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.small_segmenter import random_image, small_segmenter
from PIL import Image

from m2f_cli import cli
from m2f_cli.inference import load
from m2f_cli.inference.load import wrapped

MODEL = ("ade20k-r50-paper", "test.tta.short_edges=[48, 64]")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load", lambda ref=None, **options: small_segmenter(*MODEL))
    for name, size in (("small", (50, 60)), ("large", (90, 140))):
        Image.fromarray(random_image(*size)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_tiles_and_views(images, capsys):
    command = "predict small.png large.png --save label-png --workers 1 --out"
    assert cli.run([*command.split(), "plain"]) == 0
    assert cli.run([*command.split(), "views", "--tta", "--tile", "64", "--tile-overlap", "0.3"]) == 0
    err = capsys.readouterr().err
    assert "4 views" in err and "tiles" in err
    head = json.loads((images / "views/predictions.json").read_text())
    source = small_segmenter(*MODEL).source
    assert head["model"] == f"{source}, with test-time augmentation, in tiles of 64, overlap 0.3"
    augmented = wrapped(small_segmenter(*MODEL), tta=True, tile=64, overlap=0.3)
    for name in ("small", "large"):
        labels = np.asarray(Image.open(images / f"views/labels/{name}.png"))
        assert np.array_equal(labels, augmented(images / f"{name}.png").labels_HW)
        assert (labels != np.asarray(Image.open(images / f"plain/labels/{name}.png"))).any()
    assert cli.run([*command.split(), "views", "--skip-existing"]) == 2
    assert "another --out" in capsys.readouterr().err, "a run without views does not go on where one with views was"


@pytest.mark.parametrize("options", [["--tile", "16"], ["--tile", "64", "--tile-overlap", "0.7"]])
def test_bad_tiles_are_a_usage_error(images, options, capsys):
    assert cli.run(["predict", "small.png", *options]) == 2
    assert options[0].lstrip("-") in capsys.readouterr().err

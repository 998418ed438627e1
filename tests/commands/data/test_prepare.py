"""m2f data prepare: the options reach the work; what was done is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from m2f_cli import plugins
from m2f_cli.commands.data.prepare import prepare
from m2f_cli.errors import DataError

SPLITS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path):
    for split in SPLITS:
        for folder, suffix, pixels in (
            ("images", "jpg", np.zeros((4, 5, 3), np.uint8)),
            ("annotations", "png", np.zeros((4, 5), np.uint8)),
        ):
            (tmp_path / "in" / folder / split).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "in" / folder / split / f"1.{suffix}")
    return tmp_path / "in"


def call(*arguments):
    app = typer.Typer()
    app.command()(prepare)
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def test_it_says_what_was_done(root, tmp_path):
    done = call("mass13k", "--root", root, "--out", tmp_path / "out", "--workers", 1, "--json")
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    assert tree["schema_version"] == 1 and tree["folder"] == str(tmp_path / "out")
    assert [(each["split"], each["found"]) for each in tree["counts"]] == [(split, 1) for split in SPLITS]
    made = {each["title"]: each["made"] for each in tree["stages"]}
    assert made == {"images and annotations": 6, "classes.yaml": 1}
    shown = call("mass13k", "--root", root, "--out", tmp_path / "out", "--workers", 1)
    assert "images and annotations\t0\t6\t0" in shown.stdout and f"Prepared: {tmp_path / 'out'}" in shown.stdout
    assert "not verified" in shown.stderr


def test_errors_are_those_of_the_core(root):
    (root / "annotations" / "val" / "1.png").unlink()
    assert isinstance(call("mass13k", "--root", root).exception, DataError)
    assert call("mass13k", "--root", root, "--partial", "--workers", 1).exit_code == 0


def test_help_names_every_data_set():
    text = " ".join(call("--help").output.split())
    assert all(name in text for name in plugins.names("preparers"))

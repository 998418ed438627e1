"""m2f export --push: what is uploaded is what was checked, and comes back by its name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from export.models import segmenter_of
from helpers.small_segmenter import random_image
from weights.servers import REPO, TOKEN, serving_writable, without_hub

import m2f_cli
from m2f_cli import cli
from m2f_cli.errors import ConfigError
from m2f_cli.export.base import export
from m2f_cli.weights import save

NAMES = ["README.md", "config.json", "export.json", "model.safetensors", "preprocessor_config.json"]
IMAGE = random_image(60, 90, seed=1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    without_hub(tmp_path, monkeypatch)


@pytest.fixture
def hub(monkeypatch):
    with serving_writable(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = segmenter_of("mask2former")
    path = tmp_path_factory.mktemp("model") / "cells.safetensors"
    return save(path, model.model.state_dict(), model.config, model.categories)


def run(checkpoint, folder, *options):
    arguments = ["export", "--model", str(checkpoint), "--format", "huggingface", "--out", str(folder), *options]
    return cli.run(arguments)


def plain(value):
    """Return a result as values that can be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in vars(value).items()} if hasattr(value, "__dict__") else value


def test_a_pushed_model_is_loaded_by_its_name_and_predicts_the_same(hub, checkpoint, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert run(checkpoint, folder, "--push", REPO) == 0
    out, err = capsys.readouterr()
    assert f"Pushed to {hub.url}/{REPO}. Use it: m2f predict images/ --model {REPO}" in out
    assert sorted(hub.files) == NAMES and hub.files == {name: (folder / name).read_bytes() for name in NAMES}
    card = hub.files["README.md"].decode()
    assert set(hub.cards) == {card} and f"--model {REPO}\n" in card and f'folder = "{REPO}"\n' in card
    assert TOKEN not in out + err + "".join(data.decode(errors="replace") for data in hub.files.values())

    model, local = m2f_cli.load(REPO, device="cpu"), m2f_cli.load(folder, device="cpu")
    for name, tensor in segmenter_of("mask2former").model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor), name
    for task in model.tasks:
        assert plain(model(IMAGE, task=task)) == plain(local(IMAGE, task=task))


def test_a_push_that_fails_leaves_the_folder(hub, checkpoint, tmp_path, capsys):
    hub.failures = {"/commit/main": 409}
    assert run(checkpoint, tmp_path / "folder", "--push", REPO) == 5
    assert "is exported, but not pushed" in capsys.readouterr().err and hub.files == {}
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == NAMES


def test_json_has_the_address(hub, checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "folder", "--push", REPO, "--private", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pushed"] == f"{hub.url}/{REPO}" and hub.is_private


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "cells"], "--push takes OWNER/NAME, not 'cells'"),
        (["--push", REPO, "--format", "safetensors"], "The format safetensors cannot be pushed"),
        (["--private"], "--private is for --push OWNER/NAME"),
    ],
)
def test_wrong_requests_fail_before_the_model_is_loaded(hub, tmp_path, capsys, options, message):
    assert run("nowhere.safetensors", tmp_path / "folder", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and hub.requests == []


def test_offline_a_push_fails_before_the_model_is_loaded(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    assert run("nowhere.safetensors", tmp_path / "folder", "--push", REPO) == 2
    assert "the network is switched off" in capsys.readouterr().err and hub.requests == []


def test_the_library_refuses_as_the_command_does(tmp_path):
    with pytest.raises(ConfigError, match="cannot be pushed"):
        export(segmenter_of("mask2former"), tmp_path / "x.safetensors", "safetensors", push=REPO)
    assert list(tmp_path.iterdir()) == []

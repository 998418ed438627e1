"""Nothing but training draws from, or seeds, the generators that belong to the user's program."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from training.tiny import settings

from m2f_cli import cli, load
from m2f_cli.benchmark.case import Case
from m2f_cli.benchmark.model_under_test import load_subject
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.evaluation.evaluate import default_metrics, evaluate
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.ops.cpu import conv
from m2f_cli.training import run


def states() -> tuple:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@contextmanager
def unchanged() -> Iterator[None]:
    conv.fused_kernel_available.cache_clear()  # as in a new process
    before = states()
    yield
    assert states() == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Training seeds the generators for itself, and gives them back."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with unchanged():
        run.start(
            settings("train.iterations=1", "train.batch=2"), folder, run.TrainOptions(init="random", device="cpu")
        )
    return folder


def test_loading_predicting_and_evaluating(trained):
    data = synthetic_dataset("val", 2, size=(64, 96))
    with unchanged():
        model = load(trained, device="cpu")
        model(data.records[0].read_image())
        evaluate(model, data.records, default_metrics("panoptic", data.categories))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("safetensors", "safetensors"),
        ("huggingface", "transformers"),
        pytest.param("onnx", "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_exporting_leaves_the_random_state(trained, tmp_path, name, package):
    pytest.importorskip(package, reason="needs an extra")
    model = load(trained, device="cpu")
    suffix = {"safetensors": ".safetensors", "onnx": ".onnx"}.get(name, "")
    with unchanged():
        export(model, tmp_path / f"x{suffix}", name, ExportOptions())


def test_commands_leave_the_random_state(tmp_path, monkeypatch, capsys, trained):
    monkeypatch.chdir(tmp_path)
    with unchanged():
        assert cli.run(["data", "check", "nowhere"]) == 3
        assert (
            cli.run(
                [
                    "predict",
                    str(next((trained / "samples").glob("*.jpg"))),
                    "--model",
                    str(trained),
                    "--device",
                    "cpu",
                    "--out",
                    "out",
                ]
            )
            == 0
        )


def test_random_weights_that_are_timed():
    with unchanged():
        load_subject(Case(what="forward", preset="tiny"))


def test_importing_changes_no_random_state(fresh):
    script = (
        "import random, numpy as np, torch\n"
        "def states(): return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()\n"
        "before = states()\n"
        "import m2f_cli.inference.segmenter, m2f_cli.training.run\n"
        "import m2f_cli.dataset_tools.check.report, m2f_cli.export.base\n"
        "print(states() == before)\n"
    )
    assert fresh(script).stdout == "True\n"

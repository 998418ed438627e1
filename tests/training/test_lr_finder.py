"""The learning-rate finder: on a bowl, whose answer is known, and on a real run, which it leaves as it was."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training.tiny import settings

from m2f_cli.errors import M2FError
from m2f_cli.training import lr_finder, run
from m2f_cli.training import resume as state
from m2f_cli.training.lr_finder import find_learning_rate, search, smooth
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.parts import Parts
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")


class Bowl(nn.Module):
    """curvature / 2 · |x|²: steepest descent diverges from a rate of 2 / curvature on."""

    def __init__(self, curvature: float):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.curvature = curvature

    def forward(self, _):
        return 0.5 * self.curvature * self.x.square().sum()


def bowl_parts(curvature: float, monkeypatch) -> Parts:
    model = Bowl(curvature)
    optimizer = torch.optim.SGD([{"params": [model.x], "multiplier": 1.0}], lr=1.0)
    config = SimpleNamespace(optimizer=SimpleNamespace(clip_norm=0.0))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    monkeypatch.setattr("m2f_cli.training.loop.normaliser", lambda *_, **__: None)
    monkeypatch.setattr("m2f_cli.training.loop.losses_of", lambda parts, *_: {"loss_ce": parts.model(None)})
    return Parts(config, model, model, None, optimizer, scaler, None, torch.device("cpu"), 1)


class NoBatch:
    targets = ()

    def to(self, *_, **__):
        return self


@pytest.mark.parametrize("curvature", [0.5, 20.0, 3000.0])
def test_on_a_bowl_it_is_a_tenth_of_the_rate_of_divergence(curvature, monkeypatch):
    parts = bowl_parts(curvature, monkeypatch)
    steps = []
    found = find_learning_rate(
        parts, itertools.repeat(NoBatch()), lowest=1e-6, highest=100.0, steps=160, on_step=steps.append
    )
    assert found.suggested * 10 == pytest.approx(2 / curvature, rel=0.4)
    assert found.diverged and found.rates[-1] < 10 / curvature
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == len(steps) < 160
    assert found.rates[0] == pytest.approx(1e-6)
    ratios = {round(b / a, 9) for a, b in itertools.pairwise(found.rates)}
    assert len(ratios) == 1, "the sweep is exponential"
    assert found.losses[0] == pytest.approx(2.5 * curvature)
    assert parts.model.x.tolist() == [1.0, -2.0] and parts.model.x.grad is None


def test_a_loss_that_nothing_lowers_is_said(monkeypatch):
    parts = bowl_parts(1.0, monkeypatch)
    monkeypatch.setattr("m2f_cli.training.loop.losses_of", lambda parts, *_: {"loss_ce": parts.model(None) * 0 + 1})
    with pytest.raises(M2FError, match="does not fall at any of 20 learning rates"):
        find_learning_rate(parts, itertools.repeat(NoBatch()), steps=20)


def test_a_loss_that_is_not_finite_ends_the_sweep(monkeypatch):
    parts = bowl_parts(1.0, monkeypatch)
    values = iter([9.0, 8.0, 7.0, 5.0, 4.0, 3.5, math.nan, 0.0])
    monkeypatch.setattr(
        "m2f_cli.training.loop.losses_of", lambda parts, *_: {"loss_ce": parts.model(None) * 0 + next(values)}
    )
    found = find_learning_rate(parts, itertools.repeat(NoBatch()), steps=20)
    assert found.diverged and found.losses == [9.0, 8.0, 7.0, 5.0, 4.0, 3.5]
    assert found.suggested == pytest.approx(found.rates[5] / 10, rel=0.05)


def test_smoothing_does_not_lag():
    losses = [0.0] * 10 + [5.0] + [0.0] * 10
    smoothed = smooth(losses)
    assert smoothed[8:13] == [1.0] * 5 and sum(smoothed) == 5.0
    assert smooth([3.0, 1.0]) == [2.0, 2.0]


@pytest.mark.slow
def test_a_run_is_as_before_and_the_rate_trains(tmp_path):
    """Weights, optimiser, average and random numbers are bit by bit what they were."""
    changes = ("train.ema_decay=0.9", "train.optimizer.clip_norm=1.0")
    prepared = run.prepare(settings(*changes), tmp_path, OPTIONS, torch.device("cpu"), Listener())
    before = state.on_host(state.snapshot(prepared.parts))
    rates = []

    def on_step(tried):
        rates.append(prepared.parts.optimizer.param_groups[0]["lr"])

    found = find_learning_rate(prepared.parts, iter(prepared.loader), steps=30, on_step=on_step)
    assert rates == pytest.approx(found.rates), "the optimiser steps with the rates that are reported"
    assert_same(before, state.on_host(state.snapshot(prepared.parts)))
    assert 1e-6 < found.suggested < 0.1
    assert min(found.smoothed) < 0.9 * found.losses[0]


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
    if isinstance(one, (dict, list)):
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_same(one[key], other[key])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_its_files_lie_in_the_folder_of_the_run_which_may_then_start(tmp_path):
    folder = tmp_path / "run"
    changes = ("train.iterations=12", "train.optimizer.clip_norm=1.0")
    found = search(settings(*changes), folder, OPTIONS)
    assert sorted(path.name for path in folder.iterdir()) == sorted(lr_finder.FILES)
    written = json.loads((folder / "lr_finder.json").read_text())
    assert written["suggested"] == found.suggested and written["losses"] == found.losses
    assert len(found.rates) <= 12
    assert run.start(settings("train.iterations=1"), folder, OPTIONS).iteration == 1

"""A dry run measures a few steps with the clock that it is given, and leaves nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from training.tiny import settings

from m2f_cli.config import presets as config
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.training.data import open_splits
from m2f_cli.training.dry_run import dry_run
from m2f_cli.training.options import TrainOptions

OPTIONS = TrainOptions(init="random", device="cpu")


def clock():
    """Two seconds between looks."""
    times = itertools.count(0.0, 2.0)
    return lambda: next(times)


def test_the_estimate_is_that_of_the_measured_steps(tmp_path):
    changes = ("train.iterations=100", "train.eval_every=30", "train.loss.num_points=16")
    random = torch.get_rng_state()
    found = dry_run(settings(*changes), tmp_path / "run", OPTIONS, clock=clock())
    assert torch.equal(torch.get_rng_state(), random)
    assert (found.step_seconds, found.evaluation_seconds, found.evaluations) == (2.0, 2.0, 4)
    assert found.seconds == 100 * 2.0 + 4 * 2.0
    assert (found.train.images, found.train.classes, found.train.looked_at) == (12, 9, 12)
    assert found.val.images == 3 and found.problems == ()
    assert sum(every for _, _, every in found.parameters) > 1000
    assert list(tmp_path.iterdir()) == []


def test_epochs_are_iterations_here_too(tmp_path):
    of_epochs = config.overridden(settings(), ["train.epochs=2", "train.batch=3"])
    found = dry_run(of_epochs, tmp_path / "run", OPTIONS, clock=clock())
    assert (found.settings.train.iterations, found.settings.train.epochs) == (8, None)


def test_without_images_to_evaluate_on(tmp_path):
    train, _ = open_splits(settings(), None, None, [])
    found = dry_run(settings(), tmp_path / "run", OPTIONS, data=(train, None), clock=clock())
    assert (found.val, found.evaluations, found.evaluation_seconds) == (None, 0, 0.0)


def test_an_unusable_image_is_a_problem(tmp_path):
    train, val = open_splits(settings(), None, None, [])

    def broken():
        raise DataError("x.jpg cannot be read.")

    records = [*train.records, replace(train.records[0], read_image=broken)]
    found = dry_run(
        settings(), tmp_path / "run", replace(OPTIONS, skip_broken=True), data=(replace(train, records=records), val)
    )
    assert any("x.jpg cannot be read." in problem for problem in found.problems)


def test_a_run_that_exists_is_not_looked_at(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="was started already and has no checkpoint"):
        dry_run(settings(), tmp_path, OPTIONS)
    with pytest.raises(ConfigError, match="Leave out --resume"):
        dry_run(settings(), tmp_path / "new", replace(OPTIONS, resume=True))

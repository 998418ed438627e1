"""A training run small enough for tests: generated scenes of 64 x 96, a network of a few thousand numbers."""

from __future__ import annotations

from helpers.parts import tiny_config

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config

OVERRIDES = (
    "train.iterations=6",
    "train.batch=4",
    "train.eval_every=0",
    "train.checkpoint_every=3",
    "train.loss.num_points=64",
    "train.augment=[{name: flip, p: 0.5}, {name: crop, height: 64, width: 64, category_max_area: 1.0}]",
    "data.scenes.train=12",
    "data.scenes.val=3",
    "data.scenes.size=[64, 96]",
    "data.scenes.objects=[3, 8]",
    "test.resize.short_edge=64",
    "test.resize.max_edge=96",
)


def settings(*overrides: str) -> Config:
    """The tiny preset with the network of the other tests, to be trained for a few steps."""
    loaded = config.load("tiny", [*OVERRIDES, *overrides])
    return loaded.model_copy(update={"model": tiny_config()})

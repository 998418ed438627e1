"""A training run small enough for tests: generated scenes of 64 x 96, a network of a few thousand numbers."""

from __future__ import annotations

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config, ModelConfig

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


NETWORK = ModelConfig(
    method="mask2former",
    backbone={
        "name": "swin",
        "embed_dim": 8,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 2, 2, 2],
        "window_size": 4,
        "drop_path": 0.3,
    },
    pixel_decoder={
        "name": "deformable",
        "dim": 64,
        "mask_dim": 16,
        "num_layers": 1,
        "ffn_dim": 32,
        "num_heads": 2,
        "num_points": 4,
    },
    decoder={"name": "masked", "dim": 64, "num_queries": 12, "num_layers": 2, "num_heads": 2, "ffn_dim": 32},
)


def settings(*overrides: str) -> Config:
    """The tiny preset with a smaller network, to be trained for a few steps."""
    loaded = config.load("tiny", [*OVERRIDES, *overrides])
    return loaded.model_copy(update={"model": NETWORK})

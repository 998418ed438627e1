"""Tiny networks of ours and of transformers, for the tests of weights."""

from __future__ import annotations

import torch
from helpers.parts import randomise, tiny_config

from m2f_cli import model
from m2f_cli.config.schema import Component, Config
from m2f_cli.structures.categories import from_names

RESNET = {"name": "resnet", "depth": 50, "stem": "basic", "norm": "frozen_bn", "stem_channels": 8, "width": 8}
CATEGORIES = from_names(["nucleus", "stroma", "glass", "fat"], things=["nucleus"])


def config_of(backbone: dict | None = None, *, piloted: bool = False, heads: int = 8) -> Config:
    """A whole configuration around a tiny network; 8 heads, as foreign files are taken to have."""
    network = tiny_config(**(backbone or {}))
    parts = {
        "pixel_decoder": Component(**{**network.pixel_decoder.model_dump(), "num_heads": heads}),
        "decoder": Component(
            **{**network.decoder.model_dump(), "num_heads": heads, **({"piloted": True} if piloted else {})}
        ),
    }
    network = network.model_copy(update={**parts, "method": "mpformer" if piloted else "mask2former"})
    return Config.model_validate(
        {
            "name": "tiny",
            "task": "panoptic",
            "data": {"dataset": "cells", "classes": "cells"},
            "model": network.model_dump(),
            "input": {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            "test": {
                "tasks": ["panoptic"],
                "resize": {"short_edge": 96, "max_edge": 160},
                "size_divisor": 32,
                "object_threshold": 0.8,
                "overlap_threshold": 0.8,
                "top_k": 100,
            },
        }
    )


def network_of(config: Config, seed: int = 0) -> model.MaskClassifier:
    torch.manual_seed(seed)
    return randomise(model.build(config.model, len(CATEGORIES)), seed).eval()


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def assert_equal(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(state) == set(other)
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name

"""A real segmenter that is small enough to run hundreds of times, and images for it."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import torch
from helpers.parts import randomise, tiny_config

from m2f_cli import weights
from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import Config
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build
from m2f_cli.structures.categories import Categories, from_names

NAMES = ["cat", "dog", "bus", "sky", "road", "wall"]


@functools.cache
def small_segmenter(preset: str = "coco-panoptic-r50", *overrides: str) -> Segmenter:
    """Random weights with which things are found, six classes (three are things), the short edge 64; inference as the
    preset has it."""
    config = configuration.load(preset, ["test.resize.short_edge=64", "test.resize.max_edge=100", *overrides])
    config = config.model_copy(update={"model": tiny_config()})
    return Segmenter(_network(config, len(NAMES)), config, from_names(NAMES, things=NAMES[:3]))


def _network(config: Config, num_classes: int) -> torch.nn.Module:
    model = randomise(build(config.model, num_classes), seed=10).eval()
    with torch.no_grad():  # without this all queries and all pixels would get nearly one answer
        for name, parameter in model.named_parameters():
            parameter.mul_(0.5 if name.endswith("bias") else 8 if "query" in name else 1)
        model.decoder.class_embed.weight.mul_(12)
        model.decoder.class_embed.bias.zero_()
        model.decoder.class_embed.bias.sub_(model(torch.zeros(1, 3, 64, 96)).last.class_logits_BQK[0].mean(0))
    return model


def write_model(path: Path, config: Config, categories: Categories) -> Path:
    """A checkpoint with random weights with which things are found, and of which an export is exact."""
    return weights.save(path, _network(config, len(categories)).state_dict(), config, categories)


def random_image(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    """Patches of one colour each, with noise. (H, W, 3) uint8."""
    generator = np.random.default_rng(seed)
    patches = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
    return (image + generator.integers(-20, 20, image.shape)).clip(0, 255).astype(np.uint8)

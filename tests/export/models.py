"""Tiny segmenters that the formats of others can hold, and images as files."""

from __future__ import annotations

from pathlib import Path

from helpers.parts import randomise
from helpers.small_segmenter import random_image
from PIL import Image
from weights.models import CATEGORIES, RESNET, config_of
from weights.test_maskformer import tiny

from m2f_cli.config.schema import Config
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build

MODELS = ("mask2former", "resnet", "resnet18", "maskformer", "maskformer+6enc", "mpformer", "per-pixel")


def config_for(name: str) -> Config:
    made = {
        "mask2former": lambda: config_of(heads=4),
        "resnet": lambda: config_of(RESNET, heads=4),
        "resnet18": lambda: config_of({**RESNET, "depth": 18}, heads=4),
        "maskformer": lambda: tiny("fpn"),
        "maskformer+6enc": lambda: tiny("transformer_fpn"),
        "mpformer": lambda: config_of(heads=4, piloted=True),
        "per-pixel": lambda: tiny("fpn", "per_pixel"),
    }
    return made[name]()


def segmenter_of(name: str, seed: int = 1) -> Segmenter:
    """Random weights, four classes, the short edge 96."""
    config = config_for(name)
    return Segmenter(randomise(build(config.model, len(CATEGORIES)), seed), config, CATEGORIES)


def images_in(folder: Path, count: int = 3) -> list[Path]:
    """Some images of different sizes as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(random_image(60 + 10 * i, 90, seed=i)).save(path)
    return paths

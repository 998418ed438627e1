"""Batch on which a training step is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inference.mask_rendering import Size
from ..structures.targets import Target
from .workloads import random_images

OBJECTS = 8  # in each image


def training_batch(
    batch: int, *, size: Size, classes: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, list[Target]]:
    """Return normalised images of noise (B, 3, H, W) and targets: `OBJECTS` rectangles side by side in each image."""
    height, width = size
    owner_HW = torch.full(size, -1, dtype=torch.int16)
    for i in range(OBJECTS):
        left, right = i * width // OBJECTS, (i + 1) * width // OBJECTS
        owner_HW[height * i // 20 : height * (i + 10) // 20, left + 1 : right - 1] = i
    labels = torch.arange(OBJECTS) * 7 % classes
    targets = [Target(labels, owner_HW=owner_HW).to(device) for _ in range(batch)]
    return random_images(batch, size).to(device), targets

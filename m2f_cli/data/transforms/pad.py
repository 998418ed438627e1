"""Padding (docs/methods/published-behaviour.md#2-2, "primitives, exact")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import geometry
from .base import Sample, Size, require

Fill = int | Literal["mean"]


@dataclass(frozen=True)
class Pad:
    """Padding at the bottom and the right, to at least `size` and to multiples of `divisor`. Draws no random number.

    Args:
        value: grey value of the extension, 0 to 255, or "mean", which is 0 after normalisation and is filled in by the
            batch.
        size: pixels, one number or (height, width). A larger image keeps its size.
        divisor: divisor of both edges.
    """

    value: Fill
    size: int | Sequence[int] = 1
    divisor: int = 1

    def __post_init__(self) -> None:
        edges = [self.size] if isinstance(self.size, int) else [*self.size]
        require(len(edges) in (1, 2) and min(edges) > 0, f"size = {self.size} should be one or two numbers above 0")
        require(self.divisor > 0, f"divisor = {self.divisor} should be above 0")
        require_fill(self.value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        least = (self.size, self.size) if isinstance(self.size, int) else self.size
        edges = (max(pair) for pair in zip(sample.size, least, strict=True))
        return extended(sample, tuple(math.ceil(edge / self.divisor) * self.divisor for edge in edges), self.value)


def extended(sample: Sample, size: Size, fill: Fill) -> Sample:
    if fill == "mean":
        canvas = max(sample.canvas[0], size[0]), max(sample.canvas[1], size[1])
        return replace(sample, canvas=canvas)
    if size == sample.size:
        return sample
    image = np.full((*size, 3), fill, dtype=np.uint8)
    image[: sample.size[0], : sample.size[1]] = sample.image_HW3
    return replace(
        sample, image_HW3=image, annotation=geometry.moved(sample.annotation, geometry.extend(sample.size, size))
    )


def require_fill(value: object) -> None:
    is_grey = isinstance(value, int) and 0 <= value <= 255
    require(is_grey or value == "mean", f"the value of padding = {value!r} should be 0 to 255, or mean")

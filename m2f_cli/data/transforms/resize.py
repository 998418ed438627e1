"""Resizing and mirroring (docs/methods/published-behaviour.md#2-2, "primitives, exact")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ...structures.annotations import SemanticAnnotation
from . import geometry
from .base import Sample, Size, require

Resampling = Literal["pillow", "opencv"]


@dataclass(frozen=True)
class Flip:
    """Horizontal flip with probability p. Always draws one number."""

    p: float

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, f"p = {self.p} should be a probability, 0 to 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        annotation = geometry.moved(sample.annotation, geometry.mirror(sample.size))
        return replace(sample, image_HW3=cv2.flip(sample.image_HW3, 1), annotation=annotation)


@dataclass(frozen=True)
class ResizeChoice:
    """Resize of the short edge to one of `short_edges`, each equally likely. The aspect ratio is kept.

    If the long edge would exceed `max_edge`, it becomes `max_edge`. Sizes are rounded half up. Draws one whole number.

    Args:
        short_edges: lengths of the short edge in pixels.
        max_edge: largest length of the long edge in pixels.
        resampling: bilinear resampling of the image. "pillow" averages when it shrinks (detectron2), "opencv" does not
            (OpenMMLab). It also decides the grid of "nearest" for labels.
    """

    short_edges: Sequence[int]
    max_edge: int
    resampling: Resampling = "pillow"

    def __post_init__(self) -> None:
        require(len(self.short_edges) > 0, "short_edges is empty")
        require(min(self.short_edges) > 0, f"short_edges = {list(self.short_edges)} should be above 0")
        require(self.max_edge > 0, f"max_edge = {self.max_edge} should be above 0")
        require_resampling(self.resampling)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        edge = self.short_edges[int(rng.integers(len(self.short_edges)))]
        return resized(sample, _short_edge_size(sample.size, edge, self.max_edge), self.resampling)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize into a square of `size` times a factor from min_scale to max_scale. The aspect ratio is kept.

    Draws one number: the factor, uniform. (Ghiasi et al. 2021; detectron2's ResizeScale.)

    Attributes:
        size: edge of the square in pixels.
        min_scale: least factor.
        max_scale: largest factor.
        resampling: as in `ResizeChoice`.
        rounding: of sizes. "half_even" is detectron2's, "down" that of torchvision's ScaleJitter.
    """

    size: int
    min_scale: float
    max_scale: float
    resampling: Resampling = "pillow"
    rounding: Literal["half_even", "down"] = "half_even"

    def __post_init__(self) -> None:
        require(self.rounding in ("half_even", "down"), f"rounding = {self.rounding!r} should be half_even or down")
        require(self.size > 0, f"size = {self.size} should be above 0")
        fits = 0 < self.min_scale <= self.max_scale
        require(fits, f"min_scale = {self.min_scale}, max_scale = {self.max_scale} should be above 0 and in order")
        require_resampling(self.resampling)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        box = self.size * rng.uniform(self.min_scale, self.max_scale)
        ratio = min(box / edge for edge in sample.size)
        edges = (edge * ratio for edge in sample.size)
        height, width = (max(1, int(edge if self.rounding == "down" else np.round(edge))) for edge in edges)
        return resized(sample, (height, width), self.resampling)


def _short_edge_size(size: Size, short_edge: int, max_edge: int) -> Size:
    scale = short_edge / min(size)
    if max(size) * scale > max_edge:
        scale = max_edge / max(size)
    height, width = (max(1, int(edge * scale + 0.5)) for edge in size)
    return height, width


def resized(sample: Sample, size: Size, resampling: Resampling) -> Sample:
    if size == sample.size:
        return sample
    height, width = size
    if resampling == "opencv":
        grid, image = "opencv", cv2.resize(sample.image_HW3, (width, height), interpolation=cv2.INTER_LINEAR)
    else:  # detectron2 stores semantic labels as floats, which it resizes with torch
        grid = "torch" if isinstance(sample.annotation, SemanticAnnotation) else "pillow"
        image = np.asarray(Image.fromarray(sample.image_HW3).resize((width, height), Image.Resampling.BILINEAR))
    move = geometry.scale(sample.size, size, grid)
    return replace(sample, image_HW3=image, annotation=geometry.moved(sample.annotation, move))


def require_resampling(value: str) -> None:
    require(value in ("pillow", "opencv"), f"resampling = {value!r} should be pillow or opencv")

"""DETR's crop, which MaskFormer's COCO recipe has before its resize (docs/methods/published-behaviour.md#2-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import RandomCrop, ResizeChoice, Sample, _require

_UNLIMITED = 2**31 - 1  # the long edge of the resize before the crop has no limit


@dataclass(frozen=True)
class SometimesCrop:
    """With probability p: resize so that the short edge is one of `short_edges`, then cut a window whose height and
    width are each any of min_size … max_size pixels, or the picture's own edge where that is shorter.

    Draws one number, always; if it crops, those of `ResizeChoice`, two whole numbers (height, width), and those of
    `RandomCrop`. (Carion et al. 2020; detectron2's RandomCrop "absolute_range".)
    """

    p: float
    short_edges: Sequence[int]
    min_size: int
    max_size: int

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, f"p = {self.p} should be a probability, 0 to 1")
        in_order = 0 < self.min_size <= self.max_size
        _require(in_order, f"min_size = {self.min_size}, max_size = {self.max_size} should be above 0 and in order")
        ResizeChoice(self.short_edges, _UNLIMITED)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        sample = ResizeChoice(self.short_edges, _UNLIMITED)(sample, rng)
        height, width = (
            int(rng.integers(min(edge, self.min_size), min(edge, self.max_size), endpoint=True)) for edge in sample.size
        )
        return RandomCrop(height, width, category_max_area=1.0)(sample, rng)

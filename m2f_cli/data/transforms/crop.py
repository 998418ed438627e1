"""Crops (docs/methods/published-behaviour.md#2-2, "primitives, exact"), and the removal of what they leave empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import ConfigError
from ...structures.annotations import Annotation, InstanceAnnotation, PanopticAnnotation, SemanticAnnotation
from ...structures.run_lengths import renamed, values_in
from . import geometry
from .base import Sample, require
from .pad import Fill, extended, require_fill
from .resize import ResizeChoice

CROP_TRIES = 10
_UNLIMITED = 2**31 - 1  # the long edge of the resize before DETR's crop has no limit


@dataclass(frozen=True)
class FixedCrop:
    """Crop to a square of `size`. A smaller image is extended at the bottom and the right.

    Draws one number u that both axes share: the offset is round((edge - size) * u). (detectron2's FixedSizeCrop.)

    Args:
        size: edge of the square in pixels.
        pad_value: grey value of the extension, 0 to 255, or "mean", which is 0 after normalisation.
    """

    size: int
    pad_value: Fill

    def __post_init__(self) -> None:
        require(self.size > 0, f"size = {self.size} should be above 0")
        require_fill(self.pad_value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        u = rng.random()
        top, left = (int(np.round(max(0, edge - self.size) * u)) for edge in sample.size)
        height, width = (min(edge, self.size) for edge in sample.size)
        return extended(_cut(sample, top, left, height, width), (self.size, self.size), self.pad_value)


@dataclass(frozen=True)
class RandomCrop:
    """Crop to a window of (height, width), or of the image's own edge if that is shorter.

    Draws two whole numbers, top and left. With category_max_area below 1 it draws up to 10 times in all. It stops at a
    window that shows more than one class and whose largest class takes a smaller share of the annotated pixels. If no
    window does, the last one is used. (detectron2's RandomCrop_CategoryAreaConstraint, MMSegmentation's cat_max_ratio.)

    Attributes:
        height: height of the window in pixels.
        width: width of the window in pixels.
        category_max_area: limit for the share of the largest class, above 0 and at most 1.
    """

    height: int
    width: int
    category_max_area: float

    def __post_init__(self) -> None:
        require(min(self.height, self.width) > 0, f"height, width = {self.height}, {self.width} should be above 0")
        share = self.category_max_area
        require(0 < share <= 1, f"category_max_area = {share} should be above 0 and at most 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = min(self.height, sample.size[0]), min(self.width, sample.size[1])
        tries = CROP_TRIES if self.category_max_area < 1 else 1
        labels_HW = _labels(sample.annotation) if tries > 1 else None
        for _ in range(tries):
            top = int(rng.integers(sample.size[0] - height + 1))
            left = int(rng.integers(sample.size[1] - width + 1))
            if tries == 1 or self._is_varied(labels_HW[top : top + height, left : left + width]):
                break
        return _cut(sample, top, left, height, width)

    def _is_varied(self, labels_HW: np.ndarray) -> bool:
        counts = np.bincount(labels_HW.ravel())[1:]  # 0 stands for pixels that do not count
        return np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * self.category_max_area


@dataclass(frozen=True)
class DetrCrop:
    """Crop of DETR, which precedes the resize in MaskFormer's COCO recipe (docs/methods/published-behaviour.md#2-4).

    With probability p, the short edge is resized to one of `short_edges`, then a window is cut out. Height and width of
    the window are each any of min_size … max_size pixels, or the image's own edge if that is shorter.

    Always draws one number. If it crops, it also draws those of `ResizeChoice`, two whole numbers (height, width), and
    those of `RandomCrop`. (Carion et al. 2020; detectron2's RandomCrop "absolute_range".)
    """

    p: float
    short_edges: Sequence[int]
    min_size: int
    max_size: int

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, f"p = {self.p} should be a probability, 0 to 1")
        in_order = 0 < self.min_size <= self.max_size
        require(in_order, f"min_size = {self.min_size}, max_size = {self.max_size} should be above 0 and in order")
        ResizeChoice(self.short_edges, _UNLIMITED)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        sample = ResizeChoice(self.short_edges, _UNLIMITED)(sample, rng)
        height, width = (
            int(rng.integers(min(edge, self.min_size), min(edge, self.max_size), endpoint=True)) for edge in sample.size
        )
        return RandomCrop(height, width, category_max_area=1.0)(sample, rng)


@dataclass(frozen=True)
class DropVanished:
    """Removal of objects and segments that have no pixels left in the image. Draws no random number.

    COCO's instance recipe has this step; all others also train on the empty masks
    (docs/methods/published-behaviour.md#2-2).
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        annotation = sample.annotation
        if isinstance(annotation, InstanceAnnotation):
            annotation = replace(
                annotation, objects=[item for item in annotation.objects if not geometry.has_vanished(item)]
            )
        elif isinstance(annotation, PanopticAnnotation):
            present = set(values_in(annotation.ids_HW).tolist())
            annotation = replace(
                annotation, segments=[segment for segment in annotation.segments if segment.id in present]
            )
        return replace(sample, annotation=annotation)


def _cut(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    if (height, width) == sample.size:
        return sample
    image = np.ascontiguousarray(sample.image_HW3[top : top + height, left : left + width])
    annotation = geometry.moved(sample.annotation, geometry.window(top, left, height, width))
    return replace(sample, image_HW3=image, annotation=annotation)


def _labels(annotation: Annotation) -> np.ndarray:
    """Return the class number + 1 of every pixel, or 0 for pixels that do not count."""
    if isinstance(annotation, SemanticAnnotation):
        labels_HW = annotation.labels_HW.astype(np.int32)
        return np.where(labels_HW == annotation.ignore, 0, labels_HW + 1)
    if isinstance(annotation, PanopticAnnotation):
        return renamed(
            annotation.ids_HW, {segment.id: segment.label + 1 for segment in annotation.segments}, 0, np.int32
        )
    raise ConfigError(
        "A crop with category_max_area below 1 needs a class for every pixel, which instance annotations do not give.",
        hint="Set category_max_area to 1.0 for instance data.",
    )

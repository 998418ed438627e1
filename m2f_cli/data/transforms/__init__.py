"""Augmentation: small steps that change a picture and the truth about it together
(docs/methods/published-behaviour.md#2-2, "primitives, exact").

A step is called with a sample and a random generator, and draws from it in the order that its docstring states; so a
sample is a function of the generator's seed. Another package's step needs nothing but the same `__call__`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import cv2
import numpy as np
from PIL import Image

from ... import plugins
from ...config.schema import Component
from ...errors import ConfigError
from ...structures.annotations import InstanceTruth, PanopticTruth, SemanticTruth, Truth
from ...structures.run_lengths import renamed, values_in
from . import geometry

Resampling = Literal["pillow", "opencv"]
Fill = int | Literal["mean"]
CROP_TRIES = 10
Size = tuple[int, int]


@dataclass
class Sample:
    """A picture and the truth about it, of one size.

    image_HW3: uint8, RGB.
    canvas: least (height, width) of the batch that the picture enters. What lies between the picture's lower right
        border and the canvas is 0 after normalisation and belongs to no target.
    """

    image_HW3: np.ndarray
    truth: Truth
    canvas: Size = (0, 0)

    @property
    def size(self) -> Size:
        return self.image_HW3.shape[:2]


class Transform(Protocol):
    """One step of an augmentation. It returns a new sample and leaves the arrays of the old one as they were."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def build_transforms(components: Sequence[Component], *, trust_code: bool = False) -> list[Transform]:
    """The steps that a configuration lists, in order.

    Args:
        trust_code: whether the configuration may name code ("module:object").

    Raises:
        ConfigError: an unknown step, options that are unknown, missing or make no sense, or code without `trust_code`.
    """
    return [_build(component, trust_code) for component in components]


def _build(component: Component, trust_code: bool) -> Transform:
    step = plugins.get("transforms", component.name, trust_code=trust_code)
    try:
        return step(**component.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The augmentation step {component.name} makes no sense: {error}.") from error


def augment(sample: Sample, steps: Sequence[Transform], rng: np.random.Generator) -> Sample:
    """All steps, one after the other."""
    for step in steps:
        sample = step(sample, rng)
    return sample


# --- the steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability p. Draws one number, always."""

    p: float

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, f"p = {self.p} should be a probability, 0 to 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        truth = geometry.moved(sample.truth, geometry.mirror(sample.size))
        return replace(sample, image_HW3=cv2.flip(sample.image_HW3, 1), truth=truth)


@dataclass(frozen=True)
class ResizeChoice:
    """Resize so that the short edge is one of `short_edges` (pixels), each as likely as the others, aspect kept.

    Where the long edge would pass `max_edge`, it becomes that. Rounded half up. Draws one whole number.

    Args:
        resampling: of the picture, bilinear: "pillow" averages when it shrinks (detectron2), "opencv" does not
            (OpenMMLab). It also decides the grid of "nearest" for labels.
    """

    short_edges: Sequence[int]
    max_edge: int
    resampling: Resampling = "pillow"

    def __post_init__(self) -> None:
        _require(len(self.short_edges) > 0, "short_edges is empty")
        _require(min(self.short_edges) > 0, f"short_edges = {list(self.short_edges)} should be above 0")
        _require(self.max_edge > 0, f"max_edge = {self.max_edge} should be above 0")
        _require_resampling(self.resampling)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        edge = self.short_edges[int(rng.integers(len(self.short_edges)))]
        return _resized(sample, _short_edge_size(sample.size, edge, self.max_edge), self.resampling)


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resize to fit into a square of `size` times a factor from min_scale to max_scale, aspect kept.

    Rounded half to even. Draws one number: the factor, uniform. (Ghiasi et al. 2021; detectron2's ResizeScale.)
    """

    size: int
    min_scale: float
    max_scale: float
    resampling: Resampling = "pillow"

    def __post_init__(self) -> None:
        _require(self.size > 0, f"size = {self.size} should be above 0")
        fits = 0 < self.min_scale <= self.max_scale
        _require(fits, f"min_scale = {self.min_scale}, max_scale = {self.max_scale} should be above 0 and in order")
        _require_resampling(self.resampling)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        box = self.size * rng.uniform(self.min_scale, self.max_scale)
        ratio = min(box / edge for edge in sample.size)
        height, width = (max(1, int(np.round(edge * ratio))) for edge in sample.size)
        return _resized(sample, (height, width), self.resampling)


@dataclass(frozen=True)
class FixedCrop:
    """Cut a square of `size`, then extend what is smaller to it, at the bottom and the right.

    Draws one number that both axes share: the offset is round((edge - size) * u). (detectron2's FixedSizeCrop.)

    Args:
        pad_value: the grey of the extension, 0 to 255, or "mean": 0 after normalisation.
    """

    size: int
    pad_value: Fill

    def __post_init__(self) -> None:
        _require(self.size > 0, f"size = {self.size} should be above 0")
        _require_fill(self.pad_value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        u = rng.random()
        top, left = (int(np.round(max(0, edge - self.size) * u)) for edge in sample.size)
        height, width = (min(edge, self.size) for edge in sample.size)
        return _extended(_cut(sample, top, left, height, width), (self.size, self.size), self.pad_value)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of (height, width), or of the picture's own edge where that is shorter.

    Draws two whole numbers, top and left. With category_max_area below 1 it draws again, up to 10 times in all, until
    the window shows more than one class and the largest takes a smaller share of what is annotated; the last one is
    used if none does. (detectron2's RandomCrop_CategoryAreaConstraint, MMSegmentation's cat_max_ratio.)
    """

    height: int
    width: int
    category_max_area: float

    def __post_init__(self) -> None:
        _require(min(self.height, self.width) > 0, f"height, width = {self.height}, {self.width} should be above 0")
        share = self.category_max_area
        _require(0 < share <= 1, f"category_max_area = {share} should be above 0 and at most 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = min(self.height, sample.size[0]), min(self.width, sample.size[1])
        tries = CROP_TRIES if self.category_max_area < 1 else 1
        labels_HW = _labels(sample.truth) if tries > 1 else None
        for _ in range(tries):
            top = int(rng.integers(sample.size[0] - height + 1))
            left = int(rng.integers(sample.size[1] - width + 1))
            if tries == 1 or self._is_varied(labels_HW[top : top + height, left : left + width]):
                break
        return _cut(sample, top, left, height, width)

    def _is_varied(self, labels_HW: np.ndarray) -> bool:
        counts = np.bincount(labels_HW.ravel())[1:]  # 0 is what does not count
        return np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * self.category_max_area


@dataclass(frozen=True)
class ColorJitter:
    """The colour changes of SSD (Liu et al. 2016): brightness, contrast, saturation and hue, each at even odds.

    brightness: the most that is added to all channels; contrast, saturation: (least, most) factor, uniform;
    hue: the most that is added, whole numbers of 2 degrees. Every change is cut to bytes, towards 0. Hue and
    saturation are OpenCV's for bytes (hue 0 to 179).

    Draws, in this order: brightness's coin (and value); the order's coin; then contrast, saturation, hue or saturation,
    hue, contrast, each its coin (and value). The value is drawn only where the coin says so.
    """

    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: int

    def __post_init__(self) -> None:
        _require(self.brightness >= 0, f"brightness = {self.brightness} should be 0 or more")
        for name, (low, high) in {"contrast": self.contrast, "saturation": self.saturation}.items():
            _require(0 <= low <= high, f"{name} = ({low}, {high}) should be 0 or more and in order")
        _require(0 <= self.hue < 180, f"hue = {self.hue} should be 0 to 179")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = self._brightened(sample.image_HW3, rng)
        if rng.random() < 0.5:
            changes = self._contrasted, self._saturated, self._turned
        else:
            changes = self._saturated, self._turned, self._contrasted
        for change in changes:
            image = change(image, rng)
        return replace(sample, image_HW3=image)

    def _brightened(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        return cv2.LUT(image, _table(1.0, rng.uniform(-self.brightness, self.brightness)))

    def _contrasted(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        return cv2.LUT(image, _table(rng.uniform(*self.contrast), 0.0))

    def _saturated(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        return _in_hsv(image, 1, _table(rng.uniform(*self.saturation), 0.0))

    def _turned(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        turn = rng.integers(-self.hue, self.hue, endpoint=True)
        return _in_hsv(image, 0, ((np.arange(256) + turn) % 180).astype(np.uint8))


@dataclass(frozen=True)
class Pad:
    """Extend at the bottom and the right: to at least `size`, and to multiples of `divisor`. Draws nothing.

    Args:
        size: pixels, one number or (height, width). A larger picture stays as large as it is.
        value: the grey of the extension, 0 to 255, or "mean": 0 after normalisation, which the batch fills in.
    """

    value: Fill
    size: int | Sequence[int] = 1
    divisor: int = 1

    def __post_init__(self) -> None:
        edges = [self.size] if isinstance(self.size, int) else [*self.size]
        _require(len(edges) in (1, 2) and min(edges) > 0, f"size = {self.size} should be one or two numbers above 0")
        _require(self.divisor > 0, f"divisor = {self.divisor} should be above 0")
        _require_fill(self.value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        least = (self.size, self.size) if isinstance(self.size, int) else self.size
        edges = (max(pair) for pair in zip(sample.size, least, strict=True))
        return _extended(sample, tuple(math.ceil(edge / self.divisor) * self.divisor for edge in edges), self.value)


@dataclass(frozen=True)
class DropVanished:
    """Leave out objects and segments of which nothing is left in the picture. Draws nothing.

    COCO's instance recipe does so; all others train on the empty masks too (docs/methods/published-behaviour.md#2-2).
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        truth = sample.truth
        if isinstance(truth, InstanceTruth):
            truth = replace(truth, objects=[item for item in truth.objects if not geometry.has_vanished(item)])
        elif isinstance(truth, PanopticTruth):
            present = set(values_in(truth.ids_HW).tolist())
            truth = replace(truth, segments=[segment for segment in truth.segments if segment.id in present])
        return replace(sample, truth=truth)


# --- what they share --------------------------------------------------------------------------------------------------


def _short_edge_size(size: Size, short_edge: int, max_edge: int) -> Size:
    scale = short_edge / min(size)
    if max(size) * scale > max_edge:
        scale = max_edge / max(size)
    height, width = (max(1, int(edge * scale + 0.5)) for edge in size)
    return height, width


def _resized(sample: Sample, size: Size, resampling: Resampling) -> Sample:
    if size == sample.size:
        return sample
    height, width = size
    if resampling == "opencv":
        grid, image = "opencv", cv2.resize(sample.image_HW3, (width, height), interpolation=cv2.INTER_LINEAR)
    else:  # detectron2 holds semantic labels as floats, for which its resize is torch's
        grid = "torch" if isinstance(sample.truth, SemanticTruth) else "pillow"
        image = np.asarray(Image.fromarray(sample.image_HW3).resize((width, height), Image.Resampling.BILINEAR))
    move = geometry.scale(sample.size, size, grid)
    return replace(sample, image_HW3=image, truth=geometry.moved(sample.truth, move))


def _cut(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    if (height, width) == sample.size:
        return sample
    image = np.ascontiguousarray(sample.image_HW3[top : top + height, left : left + width])
    truth = geometry.moved(sample.truth, geometry.window(top, left, height, width))
    return replace(sample, image_HW3=image, truth=truth)


def _extended(sample: Sample, size: Size, fill: Fill) -> Sample:
    if fill == "mean":
        canvas = max(sample.canvas[0], size[0]), max(sample.canvas[1], size[1])
        return replace(sample, canvas=canvas)
    if size == sample.size:
        return sample
    image = np.full((*size, 3), fill, dtype=np.uint8)
    image[: sample.size[0], : sample.size[1]] = sample.image_HW3
    return replace(sample, image_HW3=image, truth=geometry.moved(sample.truth, geometry.extend(sample.size, size)))


def _labels(truth: Truth) -> np.ndarray:
    """Class numbers + 1 of all pixels, 0 where nothing counts."""
    if isinstance(truth, SemanticTruth):
        labels_HW = truth.labels_HW.astype(np.int32)
        return np.where(labels_HW == truth.ignore, 0, labels_HW + 1)
    if isinstance(truth, PanopticTruth):
        return renamed(truth.ids_HW, {segment.id: segment.label + 1 for segment in truth.segments}, 0, np.int32)
    raise ConfigError(
        "A crop with category_max_area below 1 needs a class for every pixel, which instance annotations do not give.",
        hint="Set category_max_area to 1.0 for instance data.",
    )


def _table(factor: float, offset: float) -> np.ndarray:
    """What becomes of each byte: times factor plus offset in single precision, cut to 0 … 255, cut to whole numbers."""
    return np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"The augmentation makes no sense: {otherwise}.")


def _require_resampling(value: str) -> None:
    _require(value in ("pillow", "opencv"), f"resampling = {value!r} should be pillow or opencv")


def _require_fill(value: object) -> None:
    is_grey = isinstance(value, int) and 0 <= value <= 255
    _require(is_grey or value == "mean", f"the value of padding = {value!r} should be 0 to 255, or mean")

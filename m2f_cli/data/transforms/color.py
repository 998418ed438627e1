"""Colour changes: those of SSD (docs/methods/published-behaviour.md#2-2, "primitives, exact"), and torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from .base import Sample, require


@dataclass(frozen=True)
class ColorJitter:
    """Colour changes of SSD (Liu et al. 2016): brightness, contrast, saturation and hue, each with probability 0.5.

    Every change is clipped to bytes and rounded towards 0. Hue and saturation are OpenCV's for bytes (hue 0 to 179).

    Draws, in this order: brightness's coin (and value); the order's coin; then either contrast, saturation, hue or
    saturation, hue, contrast, each its coin (and value). A value is drawn only if its coin says so.

    Attributes:
        brightness: largest offset that is added to all channels, in either direction.
        contrast: (least, largest) factor, uniform.
        saturation: (least, largest) factor, uniform.
        hue: largest offset, in whole steps of 2 degrees, in either direction.
    """

    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: int

    def __post_init__(self) -> None:
        require(self.brightness >= 0, f"brightness = {self.brightness} should be 0 or more")
        for name, (low, high) in {"contrast": self.contrast, "saturation": self.saturation}.items():
            require(0 <= low <= high, f"{name} = ({low}, {high}) should be 0 or more and in order")
        require(0 <= self.hue < 180, f"hue = {self.hue} should be 0 to 179")

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
class ColorFactors:
    """Colour changes by factors, in torchvision's arithmetic: each with probability 0.5.

    Contrast blends with the mean grey of the image, saturation with the grey of each pixel.

    Draws, in this order: brightness's coin (and value); the order's coin; then either contrast, saturation, hue or
    saturation, hue, contrast, each its coin (and value). A value is drawn only if its coin says so.

    Attributes:
        brightness: (least, largest) factor, uniform.
        contrast: (least, largest) factor, uniform.
        saturation: (least, largest) factor, uniform.
        hue: largest turn in either direction, as a share of the circle, at most 0.5.
    """

    brightness: tuple[float, float]
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: float

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            low, high = getattr(self, name)
            require(0 <= low <= high, f"{name} = ({low}, {high}) should be 0 or more and in order")
        require(0 <= self.hue <= 0.5, f"hue = {self.hue} should be 0 to 0.5")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from torchvision.transforms.v2 import functional as F  # at first use: it takes a second

        def changed(image: Tensor, change: Callable[[Tensor, float], Tensor], span: tuple[float, float]) -> Tensor:
            return change(image, rng.uniform(*span)) if rng.random() < 0.5 else image

        image_3HW = torch.tensor(sample.image_HW3).permute(2, 0, 1)
        image_3HW = changed(image_3HW, F.adjust_brightness, self.brightness)
        contrast_is_first = rng.random() < 0.5
        if contrast_is_first:
            image_3HW = changed(image_3HW, F.adjust_contrast, self.contrast)
        image_3HW = changed(image_3HW, F.adjust_saturation, self.saturation)
        image_3HW = changed(image_3HW, F.adjust_hue, (-self.hue, self.hue))
        if not contrast_is_first:
            image_3HW = changed(image_3HW, F.adjust_contrast, self.contrast)
        return replace(sample, image_HW3=np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy()))


def _table(factor: float, offset: float) -> np.ndarray:
    """Return the table of byte values that applies x * factor + offset, in single precision.

    The result is clipped to 0 … 255 and rounded down.
    """
    return np.clip(np.arange(256, dtype=np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

"""Size of an image at test time, and the functions that resize an image to it."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ..config.schema import ResizeConfig
from .mask_rendering import Size


def _pillow(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BILINEAR))


def _opencv(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_LINEAR)


RESAMPLERS = {"pillow": _pillow, "opencv": _opencv}


def resized_shape(height: int, width: int, resize: ResizeConfig) -> Size:
    """Return the (height, width) of an image at test time.

    The short edge becomes `short_edge`, or less where the long edge would exceed `max_edge`; or the long edge becomes
    `fit`. Sizes are rounded as `rounding` says and at least 1. Half up is detectron2's ResizeShortestEdge
    (docs/methods/published-behaviour.md#2-2).
    """
    if resize.fixed is not None:
        return resize.fixed
    scale = resize.short_edge / min(height, width) if resize.short_edge else 1.0
    if resize.max_edge and max(height, width) * scale > resize.max_edge:
        scale = resize.max_edge / max(height, width)
    if resize.fit:
        scale = min(resize.fit / height, resize.fit / width)
    edges = (height * scale, width * scale)
    new_height, new_width = (round(x) if resize.rounding == "half_even" else int(x + 0.5) for x in edges)
    return max(1, new_height), max(1, new_width)


def padded_shape(height: int, width: int, divisor: int, least: int = 1) -> Size:
    """Return the least (height, width) that hold an image: multiples of `divisor`, and no edge below `least`."""
    padded_height, padded_width = (-(-max(edge, least) // divisor) * divisor for edge in (height, width))
    return padded_height, padded_width

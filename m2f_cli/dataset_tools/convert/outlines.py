"""Outlines of masks: paths whose pixels, by COCO's own rule, are exactly those of the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.spatial import cKDTree

from ...structures.contours import outlines


def same_pixels(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return True if two run-length masks cover the same pixels."""
    areas = {int(coco_mask.area(rle)) for rle in (first, second, coco_mask.merge([first, second], intersect=True))}
    return len(areas) == 1


def rle_outlines(rle: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the closed paths around a mask and around its holes, each (points, 2) int64 x, y: corners of pixels."""
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(rle))
    regions = outlines(coco_mask.decode(rle)[top : top + height, left : left + width]) if width else []
    offset = np.array([left, top])
    return [each.outer_P2 + offset for each in regions], [hole + offset for each in regions for hole in each.holes]


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join closed paths to one, (points, 2). Each is entered and left on the same seam, at its nearest point.

    Such a seam has no area. With the even-odd rule (COCO's), a hole stays a hole.
    """
    path = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(path).query(ring)
        start = int(np.argmin(distances))
        at = int(nearest[start])
        path = np.concatenate([path[: at + 1], ring[start:], ring[: start + 1], path[at:]])
    return path

"""Outlines of masks along the edges of pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Outline(NamedTuple):
    """Closed paths around one connected region of a mask and around the holes in it.

    A path is (points, 2) int64: x, y of the corners of pixels at which it turns. (0, 0) is the outer corner of the top
    left pixel. The area of the outer path minus that of the holes is the number of pixels.

    Attributes:
        outer_P2: path around the region.
        holes: paths around its holes.
    """

    outer_P2: np.ndarray
    holes: list[np.ndarray]


def outlines(mask_HW: np.ndarray) -> list[Outline]:
    """Return the outlines of a mask's connected regions (8 neighbours).

    OpenCV follows the centres of border pixels, which cuts off half a pixel everywhere. In the mask at twice its size,
    both edges of a pixel have coordinates of their own, so that rounding outwards gives the exact edge.

    Args:
        mask_HW: bool, or the values 0 and 1.
    """
    double = cv2.resize(mask_HW.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    paths = [_corners((contour[:, 0].astype(np.int64) + 1) // 2) for contour in contours]
    parents = tree[0][:, 3].tolist()
    regions = {number: Outline(path, []) for number, path in enumerate(paths) if parents[number] < 0}
    for path, parent in zip(paths, parents, strict=True):
        if parent >= 0:
            regions[parent].holes.append(path)
    return list(regions.values())


def _corners(points_P2: np.ndarray) -> np.ndarray:
    """Return the turning points of a closed path along the grid."""
    points_P2 = points_P2[(points_P2 != np.roll(points_P2, 1, axis=0)).any(axis=1)]
    before, after = points_P2 - np.roll(points_P2, 1, axis=0), np.roll(points_P2, -1, axis=0) - points_P2
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    reverses = (before * after).sum(axis=1) < 0
    return np.compress(turns | reverses, points_P2, axis=0)

"""Shapes of objects in other forms: outlines whose pixels, by COCO's own rule, are exactly those of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from scipy.spatial import cKDTree

from ...types import TrueObject

Size = tuple[int, int]


def rle_of(item: TrueObject, size: Size) -> dict[str, Any]:
    """The pixels of an object as a compressed run-length mask; `size` is (height, width)."""
    if isinstance(item.shape, list):
        return polygons_rle(item.shape, size)
    if isinstance(item.shape["counts"], list):
        return coco_mask.frPyObjects(item.shape, *size)
    return item.shape


def polygons_rle(polygons: Sequence[np.ndarray], size: Size) -> dict[str, Any]:
    """The union of polygons, each (points, 2), as a compressed run-length mask."""
    flat = [np.asarray(points_P2, dtype=np.float64).ravel().tolist() for points_P2 in polygons if len(points_P2) >= 3]
    if not flat:
        return coco_mask.encode(np.zeros(size, dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(flat, *size))


def same_pixels(first: dict[str, Any], second: dict[str, Any]) -> bool:
    areas = {int(coco_mask.area(rle)) for rle in (first, second, coco_mask.merge([first, second], intersect=True))}
    return len(areas) == 1


def outlines(rle: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The closed paths around a mask and around its holes, each (points, 2) int64 x, y: corners of pixels.

    OpenCV walks through the centres of border pixels, which cuts half a pixel off everywhere. In the mask at twice
    its size both borders of a pixel have a place of their own, so rounding outwards gives the exact edge.
    """
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(rle))
    if not width or not height:
        return [], []
    mask_HW = coco_mask.decode(rle)[top : top + height, left : left + width]
    double = cv2.resize(mask_HW, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    offset = np.array([left, top])
    paths = [_corners((contour[:, 0].astype(np.int64) + 1) // 2) + offset for contour in contours]
    is_hole = (tree[0][:, 3] >= 0).tolist()
    return ([path for path, hole in zip(paths, is_hole, strict=True) if not hole],
            [path for path, hole in zip(paths, is_hole, strict=True) if hole])  # fmt: skip


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Several closed paths as one, (points, 2): each is entered and left on the same seam, where it comes nearest.

    A seam that is walked there and back has no area, and filled by the even-odd rule (COCO's) a hole stays a hole.
    """
    path = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(path).query(ring)
        start = int(np.argmin(distances))
        at = int(nearest[start])
        path = np.concatenate([path[: at + 1], ring[start:], ring[: start + 1], path[at:]])
    return path


def _corners(points_P2: np.ndarray) -> np.ndarray:
    """The turning points of a closed path along the grid."""
    points_P2 = points_P2[(points_P2 != np.roll(points_P2, 1, axis=0)).any(axis=1)]
    before, after = points_P2 - np.roll(points_P2, 1, axis=0), np.roll(points_P2, -1, axis=0) - points_P2
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    reverses = (before * after).sum(axis=1) < 0
    return points_P2[turns | reverses]

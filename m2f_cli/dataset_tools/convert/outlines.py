"""Shapes of objects in other forms: outlines whose pixels, by COCO's own rule, are exactly those of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.spatial import cKDTree

from ...structures.annotations import TrueObject
from ...structures.contours import outlines

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


def rle_outlines(rle: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The closed paths around a mask and around its holes, each (points, 2) int64 x, y: corners of pixels."""
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(rle))
    found = outlines(coco_mask.decode(rle)[top : top + height, left : left + width]) if width else []
    offset = np.array([left, top])
    return [each.outer_P2 + offset for each in found], [hole + offset for each in found for hole in each.holes]


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

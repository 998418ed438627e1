"""Moves of an annotation with its image: mirror, resize, cut, extend.

Every move treats rows and columns separately. Planes of pixels (id maps, labels, masks) are moved by index; "nearest"
uses the grid of a published implementation. Polygons stay polygons until a target is made from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ...structures.annotations import (
    AnnotatedObject,
    Annotation,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from ...structures.rle import encode_shape

Grid = Literal["pillow", "torch", "opencv"]
VOID = 0  # the id of pixels without a segment in a panoptic map


@dataclass(frozen=True)
class Cutout:
    """Mask that is empty outside of a window, so that an object of a large image costs only its own box.

    During augmentation it replaces a run-length mask in `AnnotatedObject.shape`.

    Attributes:
        top: first row of the window.
        left: first column of the window.
        mask_hw: uint8, 0 or 1.
    """

    top: int
    left: int
    mask_hw: np.ndarray

    @classmethod
    def of(cls, mask_HW: np.ndarray) -> Cutout:
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if not len(rows):
            return cls(0, 0, mask_HW[:0, :0])
        top, left = int(rows[0]), int(columns[0])
        return cls(top, left, mask_HW[top : rows[-1] + 1, left : columns[-1] + 1].copy())

    def paste(self, size: tuple[int, int]) -> np.ndarray:
        """Return the whole mask (H, W), uint8."""
        mask_HW = np.zeros(size, dtype=np.uint8)
        height, width = self.mask_hw.shape
        mask_HW[self.top : self.top + height, self.left : self.left + width] = self.mask_hw
        return mask_HW


@dataclass(frozen=True)
class Move:
    """Mapping from the pixels of an image to those of the moved image.

    Attributes:
        rows: the old row of each new row, or -1 if it has none.
        columns: the old column of each new column, or -1 if it has none.
        points: moves points (P, 2; x, y in pixels, edges at whole numbers). A polygon may lose all of its points.
    """

    rows: np.ndarray
    columns: np.ndarray
    points: Callable[[np.ndarray], np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def plane(self, plane_HW: np.ndarray, fill: int) -> np.ndarray:
        """Move a plane (H, W) of any type. `fill` is the value of pixels without an old pixel."""
        if 0 in plane_HW.shape:
            return np.full(self.size, fill, dtype=plane_HW.dtype)
        moved = plane_HW.take(self.rows, axis=0, mode="wrap").take(self.columns, axis=1, mode="wrap")
        moved[self.rows < 0] = fill
        moved[:, self.columns < 0] = fill
        return moved

    def cutout(self, cutout: Cutout) -> Cutout:
        top, rows = _within(self.rows, cutout.top, cutout.mask_hw.shape[0])
        left, columns = _within(self.columns, cutout.left, cutout.mask_hw.shape[1])
        return Cutout(top, left, np.ascontiguousarray(cutout.mask_hw[rows][:, columns]))


def _within(sources: np.ndarray, start: int, length: int) -> tuple[int, np.ndarray]:
    """Return the first new row (or column) that comes from start … start + length, and the sources minus start."""
    hits = np.flatnonzero((sources >= start) & (sources < start + length))
    return (int(hits[0]) if len(hits) else 0), sources[hits] - start


# --- the moves --------------------------------------------------------------------------------------------------------


def mirror(size: tuple[int, int]) -> Move:
    """Mirror left and right."""
    height, width = size
    return Move(np.arange(height), np.arange(width)[::-1], lambda points: points * (-1, 1) + (width, 0))


def scale(size: tuple[int, int], new_size: tuple[int, int], grid: Grid) -> Move:
    """Resize an annotation. Id maps and masks use nearest neighbours on the grid that `grid` names."""
    rows, columns = (nearest_indices(old, new, grid) for old, new in zip(size, new_size, strict=True))
    factors = new_size[1] / size[1], new_size[0] / size[0]
    return Move(rows, columns, lambda points: points * factors)


def window(top: int, left: int, height: int, width: int) -> Move:
    """Cut out a window, which has to lie inside the image."""
    return Move(
        np.arange(top, top + height),
        np.arange(left, left + width),
        lambda points: _clip(points - (left, top), height, width),
    )


def extend(size: tuple[int, int], new_size: tuple[int, int]) -> Move:
    """Add rows at the bottom and columns at the right that have no old pixels."""
    rows, columns = (np.append(np.arange(old), np.full(new - old, -1)) for old, new in zip(size, new_size, strict=True))
    return Move(rows, columns, lambda points: points)


@functools.lru_cache(maxsize=512)
def nearest_indices(old: int, new: int, grid: Grid) -> np.ndarray:
    """Return the old row (or column) of each new one, as chosen by "nearest" of the library that `grid` names.

    pillow takes the centres of pixels, torch and OpenCV their left edges. pillow and OpenCV are called themselves,
    because of their rounding. torch means floor(i * old / new). Its own kernels depend on size and version, compute
    that in different precisions, and sometimes miss a quotient that is a whole number.
    """
    line = np.arange(old, dtype=np.int32)[None]
    if grid == "pillow":
        indices = np.asarray(Image.fromarray(line).resize((new, 1), Image.Resampling.NEAREST))[0]
    elif grid == "opencv":
        indices = cv2.resize(line, (new, 1), interpolation=cv2.INTER_NEAREST)[0]
    else:
        indices = np.arange(new) * old // new
    indices = np.array(indices, dtype=np.intp)
    indices.flags.writeable = False  # the array is cached and shared
    return indices


# --- annotations ------------------------------------------------------------------------------------------------------


def moved(annotation: Annotation, move: Move) -> Annotation:
    """Return the annotation of the moved image. New pixels are void or ignored, and belong to no object."""
    if isinstance(annotation, PanopticAnnotation):
        return replace(annotation, ids_HW=move.plane(annotation.ids_HW, VOID))
    if isinstance(annotation, SemanticAnnotation):
        return replace(annotation, labels_HW=move.plane(annotation.labels_HW, annotation.ignore))
    objects = [replace(item, shape=_moved_shape(item, move, annotation.size)) for item in annotation.objects]
    return InstanceAnnotation(move.size, objects)


def _moved_shape(item: AnnotatedObject, move: Move, size: tuple[int, int]) -> Any:
    if isinstance(item.shape, list):
        polygons = (move.points(np.asarray(polygon, dtype=np.float64)) for polygon in item.shape)
        return [polygon for polygon in polygons if len(polygon)]
    cutout = item.shape if isinstance(item.shape, Cutout) else Cutout.of(mask_of(item, size))
    return move.cutout(cutout)


def mask_of(item: AnnotatedObject, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an object, (H, W) uint8, by COCO's own rules for polygons and run lengths."""
    if isinstance(item.shape, Cutout):
        return item.shape.paste(size)
    return coco_mask.decode(encode_shape(item.shape, size))


def has_vanished(item: AnnotatedObject) -> bool:
    """Return True if nothing is left of an object: its polygons have no area, or its mask has no pixels."""
    if isinstance(item.shape, list):
        return not any(polygon_area(np.asarray(polygon, dtype=np.float64)) > 0 for polygon in item.shape)
    if isinstance(item.shape, Cutout):
        return not item.shape.mask_hw.any()
    return not mask_of(item, tuple(item.shape["size"])).any()


def polygon_area(points: np.ndarray) -> float:
    (x, y), (x_next, y_next) = points.T, np.roll(points, -1, axis=0).T
    return abs(float(np.sum(x * y_next - x_next * y))) / 2


def _clip(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the part of a polygon inside (0, 0) … (width, height), by Sutherland and Hodgman.

    Separate parts stay one polygon, joined along the border. Such a seam has no area.
    """
    for axis, limit, side in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        inside = side * (points[:, axis] - limit) >= 0
        following = np.roll(points, -1, axis=0)
        crosses = inside != np.roll(inside, -1)
        step = np.where(crosses, following[:, axis] - points[:, axis], 1.0)
        crossing = points + ((limit - points[:, axis]) / step)[:, None] * (following - points)
        crossing[:, axis] = limit
        both = np.stack([points, crossing], axis=1).reshape(-1, 2)
        points = both[np.stack([inside, crosses], axis=1).ravel()]
    return points

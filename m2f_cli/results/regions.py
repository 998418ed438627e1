"""Regions of a result: one mask after the other, each in its own window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """Region of a result.

    Attributes:
        id: the segment's id (panoptic), the class number (semantic) or the position (instances).
        label: class number.
        score: None for a semantic class.
        box: (top, left, bottom, right) in pixels, half open.
        mask_HW: the mask of the region inside the box, bool.
    """

    id: int
    label: int
    score: float | None
    box: tuple[int, int, int, int]
    mask_HW: np.ndarray

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask_HW))

    @property
    def window(self) -> tuple[slice, slice]:
        top, left, bottom, right = self.box
        return slice(top, bottom), slice(left, right)

    @property
    def coco_box(self) -> list[int]:
        """Box [x, y, width, height] in pixels."""
        top, left, bottom, right = self.box
        return [left, top, right - left, bottom - top]

    def full_mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the mask (bool) over the whole image of `size` (height, width)."""
        mask_HW = np.zeros(size, dtype=bool)
        mask_HW[self.window] = self.mask_HW
        return mask_HW


def masks_of(map_HW: np.ndarray, values: Sequence[int]) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Yield for each of `values` in the map its position in `values`, its window and its mask inside the window."""
    windows = windows_of(map_HW)
    for i, value in enumerate(values):
        if value in windows:
            window = windows[value]
            yield i, window, map_HW[window] == value


def windows_of(map_HW: np.ndarray) -> dict[int, tuple[slice, slice]]:
    """Return the smallest window (rows, columns) around the pixels of each value of a map of whole numbers.

    The function works on runs of equal neighbours in a row. `scipy.ndimage.find_objects` does the same, but its import
    is slow.
    """
    if not map_HW.size:
        return {}
    is_start_HW = np.ones(map_HW.shape, dtype=bool)
    np.not_equal(map_HW[:, 1:], map_HW[:, :-1], out=is_start_HW[:, 1:])
    starts, width = np.flatnonzero(is_start_HW), map_HW.shape[1]
    values = map_HW.ravel()[starts]
    is_short = values.min() >= 0 and values.max() < 2**16  # NumPy sorts 16 bits faster
    order = np.argsort(values.astype(np.uint16) if is_short else values, kind="stable")
    values, ends, starts = values[order], np.append(starts[1:], map_HW.size)[order], starts[order]
    rows = starts // width
    lefts, rights = starts - rows * width, ends - rows * width
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    bottoms = rows[np.append(first[1:], len(rows)) - 1] + 1
    edges = (rows[first], bottoms, np.minimum.reduceat(lefts, first), np.maximum.reduceat(rights, first))
    boxes = zip(values[first].tolist(), *(edge.tolist() for edge in edges), strict=True)
    return {value: (slice(top, bottom), slice(left, right)) for value, top, bottom, left, right in boxes}


def box_of(window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = window
    return rows.start, columns.start, rows.stop, columns.stop

"""Regions of a result: one mask after the other, each in its own window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..structures.run_lengths import renamed

MOST_VALUES = 2**24 + 1  # ids of COCO are below; a table of all values up to there is small


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


@dataclass(frozen=True)
class TopMap:
    """Map of the region that is on top at each pixel.

    Attributes:
        numbers_HW: 1 + position of the region in the lists below, 0 where there is none; uint16, or int32 above 65,535
            regions.
        labels: class number of each region. Regions may have no pixels.
        scores: score of each region, None where there is none.
        boxes: box (top, left, bottom, right) of each region that has one, half open, by its position; also of what
            other regions hide. None: `numbers_HW` shows them.
    """

    numbers_HW: np.ndarray
    labels: list[int]
    scores: list[float | None]
    boxes: dict[int, tuple[int, int, int, int]] | None = None

    def all_boxes(self) -> dict[int, tuple[int, int, int, int]]:
        """Return the boxes of the regions that have pixels, by position."""
        if self.boxes is not None:
            return self.boxes
        return {number - 1: box_of(window) for number, window in windows_of(self.numbers_HW).items() if number}


def number_type(count: int) -> type[np.generic]:
    """Return the type of `TopMap.numbers_HW` for a number of regions."""
    return np.uint16 if count < 2**16 else np.int32


def numbered(map_HW: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return a map of whole numbers with each of `values` replaced by 1 + its position, and all others by 0."""
    kind = number_type(len(values))
    highest = int(map_HW.max(initial=0))
    if highest >= MOST_VALUES or map_HW.min(initial=0) < 0:
        return renamed(map_HW, {value: i for i, value in enumerate(values, 1)}, 0, kind)
    table = np.zeros(highest + 1, dtype=kind)
    for i, value in enumerate(values, 1):
        if 0 <= value <= highest:
            table[value] = i
    taken: np.ndarray = np.take(table, map_HW)
    return taken


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

"""Joining of the parts of things from several windows, and run lengths of their masks in the whole image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask

from ...results.regions import Region
from ...structures.rle import RLE, encode_counts
from ..mask_rendering import Size
from .grid import Box

SHARED = 0.5  # of the smaller part: least overlap of two parts of one thing, where both windows see it


@dataclass
class Piece:
    """Part of a thing in one window.

    Attributes:
        number: number of the piece, from 0 on.
        label: class number.
        score: score of the thing in this window.
        area: number of its pixels.
        box: box of the mask in the image.
        mask_HW: bool, the mask inside the box.
    """

    number: int
    label: int
    score: float
    area: int
    box: Box
    mask_HW: np.ndarray

    def within(self, box: Box) -> np.ndarray:
        """Return the mask inside another box, which may be larger."""
        top, left = self.box[:2]
        rows = slice(max(box[0] - top, 0), max(box[2] - top, 0))
        return self.mask_HW[rows, max(box[1] - left, 0) : max(box[3] - left, 0)]


@dataclass
class Joiner:
    """Search for pieces that are parts of one thing, while windows are added row by row.

    Two pieces of two windows are joined if they have the same class and share at least half of the smaller one's
    pixels, where both windows see them. Among several such pairs, those with the highest product of IoU and score are
    joined, one to one for each pair of windows.

    Attributes:
        parents: number of an earlier piece of the same thing, for each piece; its own number for the first one.
        covered: numbers of pieces that show the same pixels as a thing that is already known.
        live: boxes and pieces of windows that later ones may overlap.
    """

    parents: list[int] = field(default_factory=list)
    covered: set[int] = field(default_factory=set)
    live: list[tuple[Box, list[Piece]]] = field(default_factory=list)

    def add(self, box: Box, regions: Iterable[Region]) -> list[Piece]:
        """Add the regions of the window `box` of the image, which are in the window's coordinates."""
        self.live = [(other, pieces) for other, pieces in self.live if other[2] > box[0]]
        new = [self._piece(box, region) for region in regions]
        for other, old in self.live:
            both = intersection(box, other)
            if both is not None:
                self._join(old, new, both)
        self.live.append((box, new))
        return new

    def root(self, number: int) -> int:
        """Return the number of the first piece of the thing that a piece belongs to."""
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def _piece(self, window: Box, region: Region) -> Piece:
        top, left, bottom, right = region.box
        box = (window[0] + top, window[1] + left, window[0] + bottom, window[1] + right)
        self.parents.append(len(self.parents))
        score = 0.0 if region.score is None else region.score  # None: a semantic class, which is no thing
        return Piece(len(self.parents) - 1, region.label, score, region.area, box, region.mask_HW)

    def _join(self, old: list[Piece], new: list[Piece], both: Box) -> None:
        pairs = sorted(_candidates(old, new, both), key=lambda pair: (-pair[0], pair[1].number, pair[2].number))
        taken: set[int] = set()
        for _, first, second, common in pairs:
            if not {first.number, second.number} & taken:
                taken |= {first.number, second.number}
                older, newer = sorted((self.root(first.number), self.root(second.number)))
                self.parents[newer] = older
            else:  # one of the two shows the same pixels as a thing that is already known
                self.covered |= {
                    each.number for each in (first, second) if each.number not in taken and common >= SHARED * each.area
                }


def _candidates(old: list[Piece], new: list[Piece], both: Box) -> Iterable[tuple[float, Piece, Piece, int]]:
    """Yield pairs that may be one thing: IoU times score, both pieces, and the number of shared pixels."""
    by_label: dict[int, list[tuple[Piece, int]]] = defaultdict(list)
    for piece in old:
        if pixels := int(np.count_nonzero(piece.within(both))):
            by_label[piece.label].append((piece, pixels))
    for second in new:
        if second.label not in by_label or not (count := int(np.count_nonzero(second.within(both)))):
            continue
        for first, pixels in by_label[second.label]:
            box = intersection(first.box, second.box)
            common = 0 if box is None else int(np.count_nonzero(first.within(box) & second.within(box)))
            if common and common >= SHARED * min(pixels, count):
                iou = common / (pixels + count - common)
                yield iou * min(first.score, second.score), first, second, common


def intersection(first: Box, second: Box) -> Box | None:
    """Return the intersection of two boxes; None where it is empty."""
    top, left = max(first[0], second[0]), max(first[1], second[1])
    bottom, right = min(first[2], second[2]), min(first[3], second[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


# --- run lengths ------------------------------------------------------------------------------------------------------


def union_rle(parts: Sequence[tuple[Box, RLE]], size: Size) -> RLE:
    """Return the union of masks as COCO run lengths of an image.

    Args:
        parts: (box in the image, run lengths of the mask inside the box) of each mask.
        size: size of the image.
    """
    boxes = np.array([box for box, _ in parts])
    top, left = (int(value) for value in boxes[:, :2].min(0))
    bottom, right = (int(value) for value in boxes[:, 2:].max(0))
    mask_HW = np.zeros((bottom - top, right - left), dtype=bool)
    for (t, l, b, r), rle in parts:  # noqa: E741
        mask_HW[t - top : b - top, l - left : r - left] |= coco_mask.decode(rle).astype(bool)
    return encode_at(mask_HW, top, left, size)


def encode_at(mask_HW: np.ndarray, top: int, left: int, size: Size) -> RLE:
    """Return a mask at (top, left) of an image as COCO run lengths, without a map of the whole image."""
    height, width = size
    edges = np.zeros((mask_HW.shape[1], mask_HW.shape[0] + 2), dtype=np.int8)  # COCO runs go down the columns
    edges[:, 1:-1] = mask_HW.T
    columns, rows = np.nonzero(np.diff(edges, axis=1))  # starts and ends in turn
    positions = (columns.astype(np.int64) + left) * height + rows + top
    same = np.flatnonzero(positions[1:-1:2] == positions[2::2]) * 2 + 1  # a run continues in the next column
    positions = np.delete(positions, np.concatenate([same, same + 1]))
    counts = np.diff(np.concatenate([[0], positions, [height * width]]))
    counts = counts[: len(counts) - (counts[-1] == 0)]
    return encode_counts(counts.tolist(), size)

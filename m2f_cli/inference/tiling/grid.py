"""Grid of overlapping windows of a large image, and the share of each window in each pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..mask_rendering import Size

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, half open


@dataclass(frozen=True)
class Axis:
    """Windows along one axis: the smallest number that keeps the overlap, evenly spread.

    The seam of two neighbours is the middle of their overlap: pixels before it belong to the first one.

    Attributes:
        length: length of the axis in pixels.
        tile: length of a window; a shorter axis has one window of its own length.
        overlap: least number of pixels that two neighbours share.
    """

    length: int
    tile: int
    overlap: int

    @cached_property
    def starts(self) -> list[int]:
        rest = self.length - self.tile
        if rest <= 0:
            return [0]
        last = -(-rest // (self.tile - self.overlap))
        return [rest * i // last for i in range(last + 1)]

    @cached_property
    def seams(self) -> list[int]:
        return [(first + self.tile + second) // 2 for first, second in zip(self.starts, self.starts[1:], strict=False)]

    def window(self, i: int) -> tuple[int, int]:
        return self.starts[i], min(self.starts[i] + self.tile, self.length)

    def own(self, i: int) -> tuple[int, int]:
        """Return the pixels [start, stop) that belong to window i. Those of all windows cover the axis once."""
        bounds = [0, *self.seams, self.length]
        return bounds[i], bounds[i + 1]

    @cached_property
    def widest_fade(self) -> int:
        """Largest number of pixels around a seam that two neighbours can share without a third window."""
        if not self.seams:
            return 0
        ends = [start + self.tile for start in self.starts]
        overlaps = [end - start for end, start in zip(ends, self.starts[1:], strict=False)]
        return min(*overlaps, *(stop - start for start, stop in map(self.own, range(len(self.starts)))))

    def support(self, i: int, fade: int) -> tuple[int, int]:
        """Return the pixels [start, stop) where window i has weight if neighbours share `fade` pixels at each seam."""
        start, stop = self.own(i)
        return start - (fade // 2 if i else 0), stop + (fade - fade // 2 if i < len(self.seams) else 0)

    def weights(self, i: int, fade: int) -> Tensor:
        """Return the weights of window i at the pixels of its support, with a raised cosine at each seam.

        At every pixel of the axis, the weights of all windows add up to 1.
        """
        start, stop = self.support(i, fade)
        weights = torch.ones(stop - start)
        rising = torch.sin((torch.arange(fade) + 0.5) / fade * (torch.pi / 2)) ** 2
        if i:
            weights[:fade] = rising
        if i < len(self.seams):
            weights[stop - start - fade :] = 1 - rising
        return weights


@dataclass(frozen=True)
class Grid:
    """Windows of an image, in rows from top to bottom, each from left to right."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: Size, tile: int, overlap: int) -> Grid:
        return cls(Axis(size[0], tile, overlap), Axis(size[1], tile, overlap))

    @property
    def size(self) -> Size:
        return self.rows.length, self.columns.length

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((i, j) for i in range(len(self.rows.starts)) for j in range(len(self.columns.starts)))

    def box(self, i: int, j: int) -> Box:
        """Return the box of window (i, j) in the image."""
        (top, bottom), (left, right) = self.rows.window(i), self.columns.window(j)
        return top, left, bottom, right

    def own(self, i: int, j: int) -> Box:
        """Return the box of pixels that belong to window (i, j)."""
        (top, bottom), (left, right) = self.rows.own(i), self.columns.own(j)
        return top, left, bottom, right

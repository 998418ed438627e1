"""How a large image is cut into overlapping windows, and which window answers for which pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..mask_rendering import Size

Box = tuple[int, int, int, int]  # top, left, bottom, right, half open


@dataclass(frozen=True)
class Axis:
    """Windows along one axis: as few as keep the overlap, evenly spread, all `tile` long (the axis if it is shorter).

    In the middle of where two neighbours overlap is their seam: pixels before it are the first one's own.
    """

    length: int
    tile: int
    overlap: int  # at least this many pixels are seen by both of two neighbours

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
        """The pixels for which window i answers alone, [start, stop). Those of all windows cover the axis once."""
        bounds = [0, *self.seams, self.length]
        return bounds[i], bounds[i + 1]

    @cached_property
    def widest_fade(self) -> int:
        """How many pixels around a seam two neighbours can share without a third one coming in."""
        if not self.seams:
            return 0
        ends = [start + self.tile for start in self.starts]
        overlaps = [end - start for end, start in zip(ends, self.starts[1:], strict=False)]
        return min(*overlaps, *(stop - start for start, stop in map(self.own, range(len(self.starts)))))

    def support(self, i: int, fade: int) -> tuple[int, int]:
        """The pixels where window i counts at all when neighbours share `fade` pixels at each seam."""
        start, stop = self.own(i)
        return start - (fade // 2 if i else 0), stop + (fade - fade // 2 if i < len(self.seams) else 0)

    def weights(self, i: int, fade: int) -> Tensor:
        """How much window i counts at the pixels of its support: a raised cosine at each seam. At every pixel of the
        axis the weights of all windows add up to 1."""
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
    """The windows of an image, in rows from top to bottom, each from left to right."""

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
        """What window (i, j) sees."""
        (top, bottom), (left, right) = self.rows.window(i), self.columns.window(j)
        return top, left, bottom, right

    def own(self, i: int, j: int) -> Box:
        """What window (i, j) answers for alone."""
        (top, bottom), (left, right) = self.rows.own(i), self.columns.own(j)
        return top, left, bottom, right

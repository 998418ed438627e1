"""Tables of learned positions, which are resampled where a network takes images of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .key_mapping import Same, Shape


class Positions(Same):
    """Layout of a table of learned positions, (1, prefix + g², C), which is resampled for another grid."""

    def fitted(self, theirs: Sequence[Tensor], shapes: Sequence[Shape]) -> Sequence[Tensor]:
        return [resample_positions(theirs[0], shapes[0])]


class PositionRows(Positions):
    """Layout of transformers' table of positions, (g², C)."""

    def their_shapes(self, ours: Shape) -> list[Shape]:
        return [ours[1:]]

    def to_m2f(self, theirs: Sequence[Tensor]) -> Tensor:
        return theirs[0][None]

    def from_m2f(self, ours: Tensor) -> list[Tensor]:
        return [ours[0]]


def resample_positions(table: Tensor, shape: Shape) -> Tensor:
    """Resize a table of learned positions of a square grid, (…, prefix + g², C): bicubic, antialiased, in fp32.

    A table that cannot be resized is returned as it is: its shape is refused later.
    """
    if table.dim() != len(shape) or table.shape[-1] != shape[-1] or tuple(table.shape) == tuple(shape):
        return table
    old, new = math.isqrt(table.shape[-2]), math.isqrt(shape[-2])
    prefix = table.shape[-2] - old * old
    if prefix != shape[-2] - new * new:
        return table
    rows_NC = table.float().reshape(-1, table.shape[-1])
    grid_1CHW = rows_NC[prefix:].T.reshape(1, -1, old, old)
    grid_1CHW = F.interpolate(grid_1CHW, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([rows_NC[:prefix], grid_1CHW.flatten(2)[0].T]).reshape(shape).to(table.dtype)

"""Functions of single rows, applied to a few rows at a time: what lies between stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import is_tracing

# Numbers of fp32 of the widest result in between: 16 MiB. Beyond 32 MiB the C library asks the system for pages anew
# each time, which finds and zeroes them: 10752 rows of 256 - 1024 - 256 channels took 72 ms at once and 57 ms in three
# pieces; many small pieces cost more in each product's preparation than a smaller cache gains.
PIECE = 2**22


def in_fp32(numbers: int, x: Tensor) -> int:
    """How many numbers of fp32 take as much memory as these in the format of a product of `x`."""
    kind = x.device.type
    size = torch.get_autocast_dtype(kind).itemsize if torch.is_autocast_enabled(kind) else x.element_size()
    return -(-numbers * size // 4)


def in_pieces(function: Callable[..., Tensor], width: int, *inputs_SX: Tensor) -> Tensor:
    """`function(*inputs_SX)`, of which each row of the result depends on the same row of the inputs only.

    Rows are the last dimension but one. In pieces on a CPU while no gradient is wanted; elsewhere all at once.

    Args:
        width: how many numbers per row the widest tensor in between has.
    """
    first = inputs_SX[0]
    if torch.is_grad_enabled() or is_tracing() or first.device.type != "cpu":
        return function(*inputs_SX)
    rows = first.shape[-2]
    count = -(-in_fp32(max(x.shape[:-1].numel() for x in inputs_SX) * width, first) // PIECE)
    if count <= 1 or rows <= 1:
        return function(*inputs_SX)
    step = -(-rows // count)
    pieces = zip(*(x.split(step, dim=-2) for x in inputs_SX), strict=True)
    return torch.cat([function(*piece) for piece in pieces], dim=-2)

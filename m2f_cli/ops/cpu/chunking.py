"""Functions of single rows, applied in chunks, so that intermediates stay in the CPU cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import is_tracing

# Of the widest intermediate in fp32: just under 32 MiB, from which on the C library asks the system for new pages.
# Smaller chunks are slower, because each product has to be prepared. See docs/development/performance.md.
CHUNK_ELEMENTS = 2**23 - 2**10


def in_fp32(numbers: int, x: Tensor) -> int:
    """Return how many fp32 numbers take as much memory as `numbers` in the format of a product of `x`."""
    kind = x.device.type
    size = torch.get_autocast_dtype(kind).itemsize if torch.is_autocast_enabled(kind) else x.element_size()
    return -(-numbers * size // 4)


def in_chunks(function: Callable[..., Tensor], width: int, *inputs_SX: Tensor) -> Tensor:
    """Return `function(*inputs_SX)`; each row of the result depends on the same row of the inputs only.

    Rows are the last dimension but one. They are split on a CPU if no gradient is wanted.

    Args:
        width: numbers per row of the widest intermediate.
    """
    first = inputs_SX[0]
    if torch.is_grad_enabled() or is_tracing() or first.device.type != "cpu":
        return function(*inputs_SX)
    rows = first.shape[-2]
    count = -(-in_fp32(max(x.shape[:-1].numel() for x in inputs_SX) * width, first) // CHUNK_ELEMENTS)
    if count <= 1 or rows <= 1:
        return function(*inputs_SX)
    step = -(-rows // count)
    chunks = zip(*(x.split(step, dim=-2) for x in inputs_SX), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks], dim=-2)

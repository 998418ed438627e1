"""Position encodings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Compute the sine position encoding of a feature map, (S, dim), fp32: first y, then x (DETR,
    docs/methods/published-behaviour.md#3-1).

    The ramp of an axis of n cells is 2π·i / (n + 1e-6), i = 1..n: it starts at one cell, not at zero or at a half.
    The result is not cached: it is large, and sines are needed of one axis at a time only.
    """
    features = dim // 2
    exponents = 2 * (torch.arange(features, dtype=torch.float32, device=device) // 2) / features
    frequencies = 10000.0**exponents

    def encode(count: int) -> Tensor:
        ramp = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angles = (ramp / (count + 1e-6) * (2 * math.pi))[:, None] / frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    y = encode(height)[:, None].expand(-1, width, -1)
    x = encode(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)

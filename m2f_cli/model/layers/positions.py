"""Position encodings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


class RotaryPositions(nn.Module):
    """Rotary positions of DINOv3, in timm's form. Unlike timm's, they can be exported for images of any size.

    Args:
        head_dim: width of an attention head, a multiple of 4.
    """

    base = 100.0

    def __init__(self, head_dim: int):
        super().__init__()
        frequencies = self.base ** (-4 * torch.arange(head_dim // 4, dtype=torch.float32) / head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return sines, then cosines of each patch of a grid, (S, 2 · head_dim), fp32; centres are from -1 to 1."""

        def angles(count: int) -> Tensor:
            cells = torch.arange(count, dtype=torch.float32, device=self.frequencies.device)
            return 2 * math.pi * (2 * (cells + 0.5) / count - 1)[:, None] * self.frequencies.float()

        height, width = shape
        y = angles(height)[:, None].expand(-1, width, -1)
        x = angles(width)[None].expand(height, -1, -1)
        angles_SD = torch.cat([y, x, y, x], dim=-1).flatten(0, 1)  # both halves of a head turn by the same angles
        return torch.cat([angles_SD.sin(), angles_SD.cos()], dim=-1)

"""Bilinear samples of maps at scattered points (PointRend, section 3; Mask2Former, section 3.3).

A point is (x, y) in [0, 1]. 0 and 1 are the outer borders; the first of W pixels has its centre at 0.5 / W. Outside,
everything is 0. That is `grid_sample` at 2p - 1 with align_corners=False and zero padding. Points have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .deformable_attention.embedding_bag import weighted_bags

Rand: TypeAlias = Callable[[tuple[int, ...], torch.device], Tensor]  # shape, device → uniform numbers in [0, 1)
Corner: TypeAlias = tuple[Tensor, Tensor, Tensor]  # row, column and weight of a pixel beside each point
MANY_CHANNELS = 32  # from so many on, rows of channels are faster than planes on a CPU


def uniform(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw uniform random numbers from PyTorch's own generator: the default `Rand`."""
    return torch.rand(shape, device=device)


def sample_points(maps_BCHW: Tensor, points_BP2: Tensor) -> Tensor:
    """Sample the map of each image at points of its own: (B, C, P), differentiable in the map.

    On a CPU many channels are read as rows of a channels-last table. A map in another format is copied first.
    """
    points_BP2 = points_BP2.detach().to(maps_BCHW.dtype)
    if maps_BCHW.device.type == "cpu" and maps_BCHW.shape[1] >= MANY_CHANNELS:
        return sample_rows(maps_BCHW, points_BP2)
    return sample_reference(maps_BCHW, points_BP2)


def sample_reference(maps_BCHW: Tensor, points_BP2: Tensor) -> Tensor:
    grid = 2 * points_BP2.unsqueeze(2) - 1
    return F.grid_sample(maps_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(3)


def sample_rows(maps_BCHW: Tensor, points_BP2: Tensor) -> Tensor:
    B, C, H, W = maps_BCHW.shape
    # NOTE a footgun: for one image, `reshape` would give a view whose rows are not contiguous, which is slow below.
    table = maps_BCHW.permute(0, 2, 3, 1).contiguous().view(B * H * W, C)
    corners = corner_weights(points_BP2, (H, W), (H, W))
    starts_B1 = torch.arange(B, device=maps_BCHW.device)[:, None] * (H * W)
    rows = torch.stack([starts_B1 + y * W + x for y, x, _ in corners], -1)
    weights = torch.stack([weight for _, _, weight in corners], -1)
    return weighted_bags(table, rows.view(-1, 4), weights.view(-1, 4)).view(B, -1, C).transpose(1, 2)


def corner_weights(points: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> list[Corner]:
    """Return the four pixels around each point, clamped to `size`; those outside have weight 0."""
    x = points[..., 0] * padded_size[1] - 0.5
    y = points[..., 1] * padded_size[0] - 0.5
    return [
        (row, column, weight_y * weight_x)
        for row, weight_y in _neighbours(y, size[0])
        for column, weight_x in _neighbours(x, size[1])
    ]


def _neighbours(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return two neighbouring pixels along one axis, and their weights."""
    first = x.floor()
    pairs = ((first, first + 1 - x), (first + 1, x - first))
    return [(i.clamp(0, size - 1).long(), weight * ((i >= 0) & (i < size))) for i, weight in pairs]

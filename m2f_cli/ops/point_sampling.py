"""Bilinear samples of maps and targets at scattered points (PointRend, section 3; Mask2Former, section 3.3).

A point is (x, y) in [0, 1]. 0 and 1 are the outer borders; the first of W pixels has its centre at 0.5 / W. Outside,
everything is 0. That is `grid_sample` at 2p - 1 with align_corners=False and zero padding. Points have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures.targets import Target
from .deformable_attention.embedding_bag import weighted_bags

Rand: TypeAlias = Callable[[tuple[int, ...], torch.device], Tensor]  # shape, device → uniform numbers in [0, 1)
Corner: TypeAlias = tuple[Tensor, Tensor, Tensor]  # row, column and weight of a pixel beside each point
PAIRS_AT_ONCE = 64  # pairs whose pixels are in memory together
PIXELS_PER_POINT = 16  # up to so many, reordering the masks is worth it
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


def sample_target(target: Target, points_P2: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample all N masks of an image at the same points: (N, P) float32 in [0, 1], fractions at the edges.

    Args:
        target: masks or an id map; both give the same numbers.
        points_P2: relative to the padded batch.
        padded_size: (height, width) of the padded batch in pixels; padding lies right and below and reads 0.

    Raises:
        ValueError: the target is larger than the batch that it is in.
    """
    corners = _target_corners(target, points_P2, padded_size)
    if target.masks_NHW is not None:
        return _sample_masks(target.masks_NHW, corners)
    N = len(target)
    # One more row takes pixels without an owner. Corner by corner, no two writes meet: the sum is reproducible.
    shares = points_P2.new_zeros(N + 1, len(points_P2), dtype=torch.float32)
    for y, x, weight in corners:
        owner_P = target.owner_HW[y, x].long()
        shares.scatter_add_(0, torch.where(owner_P < 0, N, owner_P)[None], weight[None])
    return shares[:N]


def _sample_masks(masks_NHW: Tensor, corners: list[Corner]) -> Tensor:
    """Sample all masks at the same points: (N, P)."""
    pixels = masks_NHW.shape[1:].numel()
    if masks_NHW.device.type != "cpu" or pixels > PIXELS_PER_POINT * len(corners[0][0]):
        return sum(masks_NHW[:, y, x] * weight for y, x, weight in corners)
    # All masks of a pixel side by side: picking rows of these is much faster than picking from every mask.
    table = masks_NHW.flatten(1).T.contiguous()
    width = masks_NHW.shape[2]
    return sum(table.index_select(0, y * width + x) * weight[:, None] for y, x, weight in corners).T


def choose(device: torch.device) -> str:
    """Return the implementation of `sample_matched` on a device: "masks" on a CPU; a GPU would wait for the host."""
    return "masks" if device.type == "cpu" else "pixels"


def sample_matched(
    target: Target, numbers_M: Tensor, points_MP2: Tensor, padded_size: tuple[int, int], *, impl: str | None = None
) -> Tensor:
    """Sample the masks with the given numbers, each at points of its own: (M, P) float32. See `sample_target`.

    No mask is copied for each pair that it is in.

    Args:
        impl: "pixels" (the reference) picks the pixels around each point; "masks" reads a mask at all its points.
    """
    if (impl or choose(points_MP2.device)) == "masks":
        return _sample_by_target(target, numbers_M, points_MP2, padded_size)
    if not len(numbers_M):
        return points_MP2.new_zeros(points_MP2.shape[:2], dtype=torch.float32)
    parts = zip(numbers_M.split(PAIRS_AT_ONCE), points_MP2.split(PAIRS_AT_ONCE), strict=True)
    return torch.cat([_sample_pairs(target, *part, padded_size) for part in parts])


def _sample_pairs(target: Target, numbers_M: Tensor, points_MP2: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample by indexing the pixels around each point: nothing waits for the host."""
    numbers_M1 = numbers_M[:, None]
    corners = _target_corners(target, points_MP2, padded_size)
    if target.masks_NHW is not None:
        return sum(target.masks_NHW[numbers_M1, y, x] * weight for y, x, weight in corners)
    return sum((target.owner_HW[y, x] == numbers_M1) * weight for y, x, weight in corners)


def _sample_by_target(target: Target, numbers_M: Tensor, points_MP2: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample mask by mask, each at the points of all pairs that it is in."""
    _check_size(target, padded_size)
    sizes = [torch.tensor(size, dtype=torch.float32).flip(0) for size in (padded_size, target.size)]
    sampled_MP = torch.empty(points_MP2.shape[:2])
    for number in numbers_M.unique().tolist():
        of_number = (numbers_M == number).nonzero().squeeze(1)
        mask_HW = target.owner_HW == number if target.masks_NHW is None else target.masks_NHW[number]
        points_1X2 = points_MP2[of_number].detach().float().flatten(0, 1)[None] * (sizes[0] / sizes[1])
        sampled_MP[of_number] = sample_reference(mask_HW[None, None].float(), points_1X2).view(len(of_number), -1)
    return sampled_MP


def _target_corners(target: Target, points: Tensor, padded_size: tuple[int, int]) -> list[Corner]:
    _check_size(target, padded_size)
    return corner_weights(points.detach().float(), padded_size, target.size)


def _check_size(target: Target, padded_size: tuple[int, int]) -> None:
    (h, w), (padded_h, padded_w) = target.size, padded_size
    if h > padded_h or w > padded_w:
        raise ValueError(f"a target of {h} x {w} pixels cannot lie in a batch padded to {padded_h} x {padded_w}")


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

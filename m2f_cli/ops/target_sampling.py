"""Bilinear samples of the masks of targets at scattered points.

Points and samples are those of `point_sampling`. One image is sampled by `sample_target` and `sample_matched`; several
at once by `sample_targets` and `sample_pairs`, which give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures.targets import Target
from .point_sampling import Corner, corner_weights, sample_reference

PAIRS_AT_ONCE = 64  # pairs whose pixels are in memory together
PIXELS_PER_POINT = 16  # up to so many, reordering the masks is worth it


def sample_targets(targets: Sequence[Target], points_BX2: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Sample all masks of several images, those of an image at the same points: (B, N, X) float32.

    N is the largest number of targets; an image with fewer has zeros instead. See `sample_target`.
    """
    B, X, _ = points_BX2.shape
    N = max(map(len, targets))
    owners_BS = _side_by_side(targets, padded_size)
    if owners_BS is None:
        sampled_BNX = points_BX2.new_zeros(B, N, X, dtype=torch.float32)
        for b, target in enumerate(targets):
            sampled_BNX[b, : len(target)] = sample_target(target, points_BX2[b], padded_size)
        return sampled_BNX
    shares = points_BX2.new_zeros(B, N + 1, X, dtype=torch.float32)
    for y, x, weight_BX in corner_weights(points_BX2.detach().float(), padded_size, padded_size):
        owner_BX = owners_BS.gather(1, y * padded_size[1] + x)
        shares.scatter_add_(1, torch.where(owner_BX < 0, N, owner_BX)[:, None], weight_BX[:, None])
    return shares[:, :N]


def sample_pairs(
    targets: Sequence[Target], numbers: Sequence[Tensor], points_RP2: Tensor, padded_size: tuple[int, int]
) -> Tensor:
    """Sample the masks with the given numbers, each at points of its own: (R, P) float32. See `sample_matched`.

    Args:
        targets: one per image.
        numbers: numbers of masks of each image; R in all.
        points_RP2: points of the masks, image by image.
        padded_size: (height, width) of the padded batch in pixels.
    """
    counts = [len(numbers_M) for numbers_M in numbers]
    owners_BS = _side_by_side(targets, padded_size)
    if owners_BS is None:
        images = zip(targets, numbers, points_RP2.split(counts), strict=True)
        return torch.cat([sample_matched(*image, padded_size) for image in images])
    starts = [numbers_M.new_full((len(numbers_M), 1), owners_BS.shape[1] * b) for b, numbers_M in enumerate(numbers)]
    starts_R1, numbers_R1 = torch.cat(starts), torch.cat(list(numbers))[:, None]
    corners = corner_weights(points_RP2.detach().float(), padded_size, padded_size)
    owners_S = owners_BS.flatten()
    return sum((owners_S[starts_R1 + y * padded_size[1] + x] == numbers_R1) * weight for y, x, weight in corners)


def _side_by_side(targets: Sequence[Target], padded_size: tuple[int, int]) -> Tensor | None:
    """Return the id maps of several images, padded with -1: (B, S) int64. None for one image, and for masks."""
    if len(targets) < 2 or any(target.owner_HW is None for target in targets):
        return None
    for target in targets:
        _check_size(target, padded_size)
    sizes = [(0, padded_size[1] - target.size[1], 0, padded_size[0] - target.size[0]) for target in targets]
    padded = [F.pad(target.owner_HW, size, value=-1) for target, size in zip(targets, sizes, strict=True)]
    return torch.stack(padded).flatten(1).long()


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

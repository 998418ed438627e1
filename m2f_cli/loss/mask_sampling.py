"""Comparison of predicted masks with target masks: at random points (Mask2Former) or at all pixels (MaskFormer).

Both classes have the same two methods: `for_matching` for all queries with all targets, `of_pairs` for matched pairs.
Each gives logits and target values; their last dimension is the points or pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import LossConfig
from ..ops.cpu.linear import linear
from ..ops.point_sampling import Rand, sample_matched, sample_points, sample_target, uniform
from ..structures.targets import Target

Size = tuple[int, int]
Compared = tuple[Tensor, Tensor]  # logits and target values
PAIRS_AT_ONCE = 64  # whose candidate points are in memory together


def make_mask_sampling(config: LossConfig, rand: Rand = uniform) -> RandomPoints | AllPixels:
    """Return the sampling that a configuration asks for."""
    if config.masks == "full":
        return AllPixels()
    return RandomPoints(config.num_points, config.oversample_ratio, config.importance_ratio, rand)


@dataclass(frozen=True)
class RandomPoints:
    """Random points (docs/methods/published-behaviour.md#4-1, #4-2; PointRend).

    For matching, all queries and targets of a layer share their points. For the loss, each pair has its own: most where
    its logits are near zero, the rest anywhere.

    Attributes:
        num_points: points of a mask.
        oversample_ratio: candidates for uncertain points, as a multiple of `num_points`.
        importance_ratio: the share of uncertain points, in [0, 1].
        rand: the source of random points. Matching asks it once per image that has targets, for (L, num_points, 2).
        chunk: pairs that are compared together; None for all.
    """

    num_points: int
    oversample_ratio: float
    importance_ratio: float
    rand: Rand = uniform

    chunk = None

    def for_matching(
        self, features_CHW: Tensor, embeds_LQC: Tensor, target: Target, padded_size: Size
    ) -> Iterator[Compared]:
        """Yield (Q, P) logits and (N, P) target values of each layer.

        Mask features are sampled and then multiplied with the embeddings, so no mask is rendered. Layers come one by
        one: the sampled features of all layers would be the largest tensor of the step.
        """
        features_1CHW = features_CHW[None].contiguous(memory_format=torch.channels_last)
        points_LP2 = self.rand((len(embeds_LQC), self.num_points, 2), embeds_LQC.device)
        target_NX = sample_target(target, points_LP2.flatten(0, 1), padded_size)
        targets = target_NX.split(self.num_points, dim=1)
        for embeds_QC, points_P2, target_NP in zip(embeds_LQC, points_LP2, targets, strict=True):
            sampled_CP = sample_points(features_1CHW, points_P2[None])[0]
            yield linear(embeds_QC, sampled_CP.T), target_NP

    def of_pairs(self, logits_RHW: Tensor, target: Target, numbers_R: Tensor, padded_size: Size) -> Compared:
        """Return (R, P) logits and target values of pairs, each at points of its own."""
        points_RP2 = torch.cat([self.choose(few_RHW) for few_RHW in logits_RHW.detach().split(PAIRS_AT_ONCE)])
        target_RP = sample_matched(target, numbers_R, points_RP2, padded_size)
        return sample_points(logits_RHW[:, None], points_RP2).squeeze(1), target_RP

    def choose(self, logits_RHW: Tensor) -> Tensor:
        """Return points for each mask, (R, P, 2): the most uncertain of many random ones, and some anywhere."""
        R, device = len(logits_RHW), logits_RHW.device
        num_uncertain = int(self.importance_ratio * self.num_points)
        candidates = self.rand((R, int(self.oversample_ratio * self.num_points), 2), device)
        certainty = sample_points(logits_RHW[:, None], candidates).squeeze(1).abs()
        undecided = certainty.topk(num_uncertain, largest=False, sorted=False).indices
        anywhere = self.rand((R, self.num_points - num_uncertain, 2), device)
        return torch.cat([candidates.gather(1, undecided[..., None].expand(-1, -1, 2)), anywhere], 1)


@dataclass(frozen=True)
class AllPixels:
    """Comparison at all pixels (docs/methods/published-behaviour.md#4-3). Padding belongs to no target.

    For matching, targets are resized to stride 4 (nearest). For the loss, predictions are resized to the size of the
    padded batch (bilinear).

    Attributes:
        chunk: pairs that are compared together; the gradient computes each chunk again.
    """

    chunk = 16

    def for_matching(
        self, features_CHW: Tensor, embeds_LQC: Tensor, target: Target, padded_size: Size
    ) -> Iterator[Compared]:
        """Yield (Q, S) logits and (N, S) target values of each layer, S pixels at stride 4."""
        features_CS = features_CHW.flatten(1)
        target_NS = _nearest(target, padded_size, tuple(features_CHW.shape[-2:])).flatten(1).float()
        for embeds_QC in embeds_LQC:
            yield embeds_QC @ features_CS, target_NS

    def of_pairs(self, logits_RHW: Tensor, target: Target, numbers_R: Tensor, padded_size: Size) -> Compared:
        """Return (R, S) logits and target values of pairs, S pixels of the padded batch."""
        logits_R1HW = F.interpolate(logits_RHW[:, None], size=padded_size, mode="bilinear", align_corners=False)
        (height, width), (padded_height, padded_width) = target.size, padded_size
        target_RHW = F.pad(_planes(target, numbers_R).float(), (0, padded_width - width, 0, padded_height - height))
        return logits_R1HW.flatten(1), target_RHW.flatten(1)


def _planes(target: Target, numbers_R: Tensor) -> Tensor:
    """Return the masks of the given numbers: (R, H, W), bool or uint8."""
    if target.masks_NHW is not None:
        return target.masks_NHW[numbers_R]
    return target.owner_HW == numbers_R[:, None, None]


def _nearest(target: Target, padded_size: Size, size: Size) -> Tensor:
    """Resize all masks of the padded image as `F.interpolate` with "nearest" does: (N, *size)."""
    device = target.labels_N.device
    rows, columns = (_nearest_index(*lengths, device) for lengths in zip(padded_size, size, strict=True))
    height, width = target.size
    inside_HW = (rows < height)[:, None] & (columns < width)
    y, x = rows.clamp(max=height - 1)[:, None], columns.clamp(max=width - 1)
    if target.masks_NHW is not None:
        return target.masks_NHW[:, y, x].bool() & inside_HW
    numbers_N = torch.arange(len(target), device=device)
    return (target.owner_HW[y, x] == numbers_N[:, None, None]) & inside_HW


def _nearest_index(source: int, length: int, device: torch.device) -> Tensor:
    """Return which of `source` pixels each of `length` takes: PyTorch's own rule, applied to the numbers 0, 1, …"""
    pixels = torch.arange(source, dtype=torch.float32, device=device)
    return F.interpolate(pixels[None, None], size=length, mode="nearest")[0, 0].long()

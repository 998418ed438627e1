"""Where masks are compared with their truth: at random points (Mask2Former) or at all pixels (MaskFormer).

Both answer the same two questions, each with a pair of logits and truth whose last dimension is the places: of all
queries with all targets, for matching, and of matched pairs, for the loss.
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
Compared = tuple[Tensor, Tensor]  # logits and truth
PAIRS_AT_ONCE = 64  # whose candidate points are in memory together: 30 MB at 12544 points


def make_places(config: LossConfig, rand: Rand = uniform) -> RandomPoints | AllPixels:
    """The places that a configuration asks for."""
    if config.masks == "full":
        return AllPixels()
    return RandomPoints(config.num_points, config.oversample_ratio, config.importance_ratio, rand)


@dataclass(frozen=True)
class RandomPoints:
    """Points (docs/methods/published-behaviour.md#4-1, #4-2; PointRend): shared by all queries and targets of a layer
    when matching; mostly where a query is undecided, some anywhere, when it is trained.

    rand: where random points come from. Matching asks it once per picture that has targets, for (L, num_points, 2).
    """

    num_points: int
    oversample_ratio: float
    importance_ratio: float
    rand: Rand = uniform

    chunk = None  # matched pairs are compared all at once

    def for_matching(
        self, features_CHW: Tensor, embeds_LQC: Tensor, target: Target, padded_size: Size
    ) -> Iterator[Compared]:
        """(Q, P) logits and (N, P) truth of each layer.

        The mask *features* are sampled and then multiplied with the embeddings: no mask is rendered. One layer after
        the other: (P, C) features of all layers would be the largest tensor of the whole step.
        """
        features_1CHW = features_CHW[None].contiguous(memory_format=torch.channels_last)
        points_LP2 = self.rand((len(embeds_LQC), self.num_points, 2), embeds_LQC.device)
        truth_NX = sample_target(target, points_LP2.flatten(0, 1), padded_size)
        truths = truth_NX.split(self.num_points, dim=1)
        for embeds_QC, points_P2, truth_NP in zip(embeds_LQC, points_LP2, truths, strict=True):
            sampled_CP = sample_points(features_1CHW, points_P2[None])[0]
            yield linear(embeds_QC, sampled_CP.T), truth_NP

    def of_pairs(self, logits_RHW: Tensor, target: Target, numbers_R: Tensor, padded_size: Size) -> Compared:
        """(R, P) logits and truth of pairs, each at points of its own."""
        points_RP2 = torch.cat([self.choose(few_RHW) for few_RHW in logits_RHW.detach().split(PAIRS_AT_ONCE)])
        truth_RP = sample_matched(target, numbers_R, points_RP2, padded_size)
        return sample_points(logits_RHW[:, None], points_RP2).squeeze(1), truth_RP

    def choose(self, logits_RHW: Tensor) -> Tensor:
        """Points for each mask, (R, P, 2): the most undecided of many random ones, and some more anywhere."""
        R, device = len(logits_RHW), logits_RHW.device
        num_uncertain = int(self.importance_ratio * self.num_points)
        candidates = self.rand((R, int(self.oversample_ratio * self.num_points), 2), device)
        certainty = sample_points(logits_RHW[:, None], candidates).squeeze(1).abs()
        undecided = certainty.topk(num_uncertain, largest=False, sorted=False).indices
        anywhere = self.rand((R, self.num_points - num_uncertain, 2), device)
        return torch.cat([candidates.gather(1, undecided[..., None].expand(-1, -1, 2)), anywhere], 1)


@dataclass(frozen=True)
class AllPixels:
    """Whole masks (docs/methods/published-behaviour.md#4-3): targets are brought to stride 4 (nearest) for matching,
    predictions to the size of the padded batch (bilinear) for the loss. What lies in the padding belongs to no target.
    """

    chunk = 16  # pairs that are compared together; of the others nothing stays in memory for the gradient

    def for_matching(
        self, features_CHW: Tensor, embeds_LQC: Tensor, target: Target, padded_size: Size
    ) -> Iterator[Compared]:
        """(Q, S) logits and (N, S) truth of each layer, S pixels at stride 4."""
        features_CS = features_CHW.flatten(1)
        truth_NS = _nearest(target, padded_size, tuple(features_CHW.shape[-2:])).flatten(1).float()
        for embeds_QC in embeds_LQC:
            yield embeds_QC @ features_CS, truth_NS

    def of_pairs(self, logits_RHW: Tensor, target: Target, numbers_R: Tensor, padded_size: Size) -> Compared:
        """(R, S) logits and truth of pairs, S pixels of the padded batch."""
        logits_R1HW = F.interpolate(logits_RHW[:, None], size=padded_size, mode="bilinear", align_corners=False)
        (height, width), (padded_height, padded_width) = target.size, padded_size
        truth_RHW = F.pad(_planes(target, numbers_R).float(), (0, padded_width - width, 0, padded_height - height))
        return logits_R1HW.flatten(1), truth_RHW.flatten(1)


def _planes(target: Target, numbers_R: Tensor) -> Tensor:
    """The masks of the given numbers: (R, H, W), bool or uint8."""
    if target.masks_NHW is not None:
        return target.masks_NHW[numbers_R]
    return target.owner_HW == numbers_R[:, None, None]


def _nearest(target: Target, padded_size: Size, size: Size) -> Tensor:
    """All masks of the padded picture at another size, as `F.interpolate` with "nearest" gives them: (N, *size)."""
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
    """Which of `source` pixels each of `length` takes: PyTorch's own rule, asked with the numbers 0, 1, …"""
    places = torch.arange(source, dtype=torch.float32, device=device)
    return F.interpolate(places[None, None], size=length, mode="nearest")[0, 0].long()

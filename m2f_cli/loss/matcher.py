"""Which query answers for which target: the cheapest one-to-one assignment, per picture and layer (facts 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..ops.points import Rand, sample_points, sample_target, uniform
from ..types import Prediction, Target
from .masks import pairwise_bce, pairwise_dice

# A pair whose cost is not a number is chosen only when no other is left. Small enough that float64, which scipy works
# in, still tells ordinary costs apart beside it.
UNUSABLE = 1e8


class Pairs(NamedTuple):
    """Matched pairs of one picture in every layer, ascending in queries; M = min(Q, N). Both int64, (L, M)."""

    queries_LM: Tensor
    targets_LM: Tensor


@dataclass
class Matching:
    """Pairs of each picture, and how many costs were NaN or infinite (a run that diverges shows here first)."""

    pairs: list[Pairs]
    non_finite: int


@dataclass(frozen=True)
class Matcher:
    """Weighs class, mask and dice cost and assigns.

    A layer's masks are compared at `num_points` random points per picture, shared by all queries and targets. The mask
    *features* are sampled there and then multiplied with the embeddings: no mask is rendered.

    Args:
        rand: where random points come from; it is asked once per picture that has targets, for (L, num_points, 2).
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    num_points: int
    rand: Rand = uniform

    def __call__(self, prediction: Prediction, targets: list[Target], padded_size: tuple[int, int]) -> Matching:
        """Assign in all layers and pictures; targets beyond the number of queries stay without one."""
        return assign(self.costs(prediction, targets, padded_size))

    @torch.no_grad()
    def costs(self, prediction: Prediction, targets: list[Target], padded_size: tuple[int, int]) -> list[Tensor]:
        """The costs of each picture: (L, Q, N), fp32 also under autocast, on the device."""
        features_BCHW = prediction.mask_features_BCHW
        with torch.autocast(features_BCHW.device.type, enabled=False):
            features_BCHW = features_BCHW.float().contiguous(memory_format=torch.channels_last)
            embeds_LBQC = torch.stack([layer.mask_embeds_BQC for layer in prediction.layers]).float()
            probs_LBQK = torch.stack([layer.class_logits_BQK for layer in prediction.layers]).float().softmax(-1)
            return [
                self._picture_costs(features_BCHW[b : b + 1], embeds_LBQC[:, b], probs_LBQK[:, b], target, padded_size)
                for b, target in enumerate(targets)
            ]

    def _picture_costs(self, features_1CHW, embeds_LQC, probs_LQK, target, padded_size) -> Tensor:
        L, Q, _ = embeds_LQC.shape
        if not len(target):
            return embeds_LQC.new_empty(L, Q, 0)
        points_LP2 = self.rand((L, self.num_points, 2), embeds_LQC.device)
        class_costs_LQN = -probs_LQK[:, :, target.labels_N]
        # One layer after the other: (P, C) features of all layers would be the largest tensor of the whole step.
        mask_costs = [
            self._mask_costs(embeds_QC @ sample_points(features_1CHW, points_P2[None])[0],
                             sample_target(target, points_P2, padded_size))
            for embeds_QC, points_P2 in zip(embeds_LQC, points_LP2, strict=True)
        ]
        return self.class_weight * class_costs_LQN + torch.stack(mask_costs)

    def _mask_costs(self, logits_QP: Tensor, truth_NP: Tensor) -> Tensor:
        return (self.mask_weight * pairwise_bce(logits_QP, truth_NP)
                + self.dice_weight * pairwise_dice(logits_QP, truth_NP))


def assign(costs: list[Tensor]) -> Matching:
    """Solve every (Q, N) problem in a list of (L, Q, N). One transfer to the host and one back, however many."""
    flat = torch.cat([cost_LQN.flatten() for cost_LQN in costs]).cpu().numpy().astype(np.float64)
    bad = ~np.isfinite(flat)
    flat[bad] = UNUSABLE
    np.clip(flat, -UNUSABLE, UNUSABLE, out=flat)
    ends = np.cumsum([cost_LQN.numel() for cost_LQN in costs])[:-1]
    problems = [part.reshape(cost.shape) for part, cost in zip(np.split(flat, ends), costs, strict=True)]
    solved = [np.array([linear_sum_assignment(cost_QN) for cost_QN in problem]) for problem in problems]  # (L, 2, M)
    indices = torch.from_numpy(np.concatenate([pairs.ravel() for pairs in solved])).long().to(costs[0].device)
    per_picture = indices.split([pairs.size for pairs in solved])
    pairs = [part.view(array.shape) for part, array in zip(per_picture, solved, strict=True)]
    return Matching([Pairs(pair[:, 0], pair[:, 1]) for pair in pairs], int(bad.sum()))

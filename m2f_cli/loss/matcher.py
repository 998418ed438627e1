"""Matching of queries with targets: the cheapest one-to-one assignment, per image and layer
(docs/methods/published-behaviour.md#4-1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..structures.predictions import Prediction
from ..structures.targets import Target
from .mask_losses import pairwise_bce, pairwise_dice, pairwise_focal
from .mask_sampling import AllPixels, RandomPoints

MASK_COSTS = {"bce": pairwise_bce, "focal": pairwise_focal}

# A pair whose cost is not a number is chosen only when no other is left. Small enough that float64, which scipy works
# in, still tells ordinary costs apart beside it.
UNUSABLE = 1e8


class Pairs(NamedTuple):
    """Matched pairs of one image in every layer, ascending in queries.

    Attributes:
        queries_LM: int64 indices of queries; M = min(Q, N).
        targets_LM: int64 indices of targets.
    """

    queries_LM: Tensor
    targets_LM: Tensor


@dataclass
class Matching:
    """The result of matching a batch.

    Attributes:
        pairs: of each image.
        non_finite: the number of costs that were NaN or infinite, an early sign of a run that diverges.
    """

    pairs: list[Pairs]
    non_finite: int


@dataclass(frozen=True)
class Matcher:
    """Weighted sum of class, mask and dice cost, and the assignment that minimises it.

    Attributes:
        class_weight, mask_weight, dice_weight: factors of the three costs.
        sampling: where masks are compared.
        mask_cost: "bce" or "focal".
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    sampling: RandomPoints | AllPixels
    mask_cost: Literal["bce", "focal"] = "bce"

    def __call__(self, prediction: Prediction, targets: list[Target], padded_size: tuple[int, int]) -> Matching:
        """Match all layers and images; targets beyond the number of queries stay unmatched."""
        return assign(self.costs(prediction, targets, padded_size))

    @torch.no_grad()
    def costs(self, prediction: Prediction, targets: list[Target], padded_size: tuple[int, int]) -> list[Tensor]:
        """Return the costs of each image: (L, Q, N), fp32 also under autocast, on the device."""
        parts = prediction.by_features()
        if len(parts) > 1:
            per_layer = [self.costs(part, targets, padded_size) for part in parts]
            return [torch.cat(layers) for layers in zip(*per_layer, strict=True)]
        [prediction] = parts
        features_BCHW = prediction.mask_features_BCHW
        with torch.autocast(features_BCHW.device.type, enabled=False):
            embeds_LBQC = torch.stack([layer.mask_embeds_BQC for layer in prediction.layers]).float()
            probs_LBQK = torch.stack([layer.class_logits_BQK for layer in prediction.layers]).float().softmax(-1)
            return [
                self._image_costs(features_CHW.float(), embeds_LBQC[:, b], probs_LBQK[:, b], target, padded_size)
                for b, (features_CHW, target) in enumerate(zip(features_BCHW, targets, strict=True))
            ]

    def _image_costs(self, features_CHW, embeds_LQC, probs_LQK, target, padded_size) -> Tensor:
        L, Q, _ = embeds_LQC.shape
        if not len(target):
            return embeds_LQC.new_empty(L, Q, 0)
        class_costs_LQN = -probs_LQK[:, :, target.labels_N]
        compared = self.sampling.for_matching(features_CHW, embeds_LQC, target, padded_size)
        return self.class_weight * class_costs_LQN + torch.stack([self._mask_costs(*pair) for pair in compared])

    def _mask_costs(self, logits_QP: Tensor, target_NP: Tensor) -> Tensor:
        return self.mask_weight * MASK_COSTS[self.mask_cost](logits_QP, target_NP) + self.dice_weight * pairwise_dice(
            logits_QP, target_NP
        )


def assign(costs: list[Tensor]) -> Matching:
    """Solve every (Q, N) problem in a list of (L, Q, N), with one transfer to the host and one back."""
    flat = torch.cat([cost_LQN.flatten() for cost_LQN in costs]).cpu().numpy().astype(np.float64)
    bad = ~np.isfinite(flat)
    flat[bad] = UNUSABLE
    np.clip(flat, -UNUSABLE, UNUSABLE, out=flat)
    ends = np.cumsum([cost_LQN.numel() for cost_LQN in costs])[:-1]
    problems = [part.reshape(cost.shape) for part, cost in zip(np.split(flat, ends), costs, strict=True)]
    solved = [np.array([linear_sum_assignment(cost_QN) for cost_QN in problem]) for problem in problems]  # (L, 2, M)
    indices = torch.from_numpy(np.concatenate([pairs.ravel() for pairs in solved])).long().to(costs[0].device)
    per_image = indices.split([pairs.size for pairs in solved])
    pairs = [part.view(array.shape) for part, array in zip(per_image, solved, strict=True)]
    return Matching([Pairs(pair[:, 0], pair[:, 1]) for pair in pairs], int(bad.sum()))

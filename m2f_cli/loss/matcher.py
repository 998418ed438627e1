"""Matching of queries with targets: the cheapest one-to-one assignment, per image and layer
(docs/methods/published-behaviour.md#4-1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
            numbers = len(prediction.layers) * self.sampling.num_points * features_BCHW.shape[1]
            portions = [
                self._costs_of(
                    features_BCHW[part].float(), embeds_LBQC[:, part], probs_LBQK[:, part], targets[part], padded_size
                )
                for part in self.sampling.portions([numbers] * len(targets))
            ]
            return [cost_LQN for portion in portions for cost_LQN in portion]

    def _costs_of(
        self,
        features_BCHW: Tensor,
        embeds_LBQC: Tensor,
        probs_LBQK: Tensor,
        targets: list[Target],
        padded_size: tuple[int, int],
    ) -> list[Tensor]:
        L, B, Q, _ = embeds_LBQC.shape
        counts = [len(target) for target in targets]
        if not any(counts):
            return [embeds_LBQC.new_empty(L, Q, 0)] * B
        labels_BN = pad_sequence([target.labels_N for target in targets], batch_first=True)
        class_costs_LBQN = -probs_LBQK.gather(3, labels_BN[None, :, None].expand(L, -1, Q, -1))
        compared = self.sampling.for_matching(features_BCHW, embeds_LBQC, targets, padded_size)
        mask_costs_LBQN = torch.cat([self._mask_costs(*pair) for pair in compared])
        costs_LBQN = self.class_weight * class_costs_LBQN + mask_costs_LBQN
        return [costs_LBQN[:, b, :, :count] for b, count in enumerate(counts)]

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

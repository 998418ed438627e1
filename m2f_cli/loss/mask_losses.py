"""Losses of masks, of matched pairs and of all queries with all targets.

All take logits and target values in [0, 1]; values are fractions where a point lies on an edge. They reduce the last
dimension: sampled points (Mask2Former) or all pixels (MaskFormer). Further dimensions may come first. Sources:
docs/methods/published-behaviour.md#4-1 to #4-3.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropy of (…, P), the mean over P: (…)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - (2·overlap + 1) / (sum of both + 1) of (…, P), in [0, 1): (…)."""
    probs = logits.sigmoid()
    return 1 - (2 * (probs * target).sum(-1) + 1) / (probs.sum(-1) + target.sum(-1) + 1)


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of (…, P), the mean over P: (…). `alpha` weighs foreground, 1 - `alpha` background."""
    probs = logits.sigmoid()
    wrong = probs * (1 - target) + (1 - probs) * target
    weights = alpha * target + (1 - alpha) * (1 - target)
    return (weights * wrong**gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).mean(-1)


def pairwise_bce(logits_QP: Tensor, target_NP: Tensor) -> Tensor:
    """Return the `bce` of every query with every target: (…, Q, N).

    softplus(-z)·t + softplus(z)·(1 - t) = softplus(z) - z·t: one pass over the logits and one matrix product.
    """
    return (F.softplus(logits_QP).sum(-1, keepdim=True) - logits_QP @ target_NP.mT) / logits_QP.shape[-1]


def pairwise_dice(logits_QP: Tensor, target_NP: Tensor) -> Tensor:
    """Return the `dice` of every query with every target: (…, Q, N)."""
    probs = logits_QP.sigmoid()
    sizes_1N = target_NP.sum(-1).unsqueeze(-2)
    return 1 - (2 * probs @ target_NP.mT + 1) / (probs.sum(-1, keepdim=True) + sizes_1N + 1)


def pairwise_focal(logits_QP: Tensor, target_NP: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal cost of every query with every target: (…, Q, N). That of `focal` where targets are 0 or 1."""
    probs = logits_QP.sigmoid()
    foreground = alpha * (1 - probs) ** gamma * F.softplus(-logits_QP)
    background = (1 - alpha) * probs**gamma * F.softplus(logits_QP)
    return ((foreground - background) @ target_NP.mT + background.sum(-1, keepdim=True)) / logits_QP.shape[-1]

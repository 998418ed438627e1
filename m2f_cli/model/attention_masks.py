"""Masks of masked attention. True means that a query may attend to a pixel."""

from __future__ import annotations

from torch import Tensor


def open_empty_rows(may_attend_BQS: Tensor) -> Tensor:
    """Let a query whose mask is empty attend everywhere; True = may attend."""
    return may_attend_BQS | ~may_attend_BQS.any(dim=-1, keepdim=True)


def masked_attention(mask_embeds_BQC: Tensor, features_BCS: Tensor) -> Tensor:
    """Return where each query may attend: the cells that its mask covers (probability of at least one half).

    Resizing is linear, so masks of resized features are the resized masks: no full-size mask is rendered.
    """
    logits_BQS = mask_embeds_BQC.detach() @ features_BCS.detach()
    return open_empty_rows(logits_BQS >= 0)

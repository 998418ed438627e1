"""Low-rank changes of weights (LoRA; Hu et al. 2021, section 4.1): W + scale · B A."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

THIRDS = ("q", "k", "v")  # rows of a projection that makes queries, keys and values at once


def low_rank_sum(weight_OI: Tensor, a_TRI: Tensor, b_TDR: Tensor, scale: float, parts: Sequence[int]) -> Tensor:
    """Add T products of rank R to weights.

    Args:
        weight_OI: weights of a linear layer; its O rows are O / D parts of D rows each.
        a_TRI: second factor of each product.
        b_TDR: first factor of each product.
        scale: factor of every product.
        parts: number of the part that each product is added to.
    """
    pieces = list(weight_OI.split(b_TDR.shape[1]))
    for part, product_DI in zip(parts, b_TDR @ a_TRI, strict=True):
        pieces[part] = pieces[part] + scale * product_DI
    return torch.cat(pieces)


def parts_of(targets: Collection[str], num_parts: int) -> tuple[int, ...]:
    """Return the parts of a layer that change: its only one, or the chosen thirds of a fused projection."""
    return (0,) if num_parts == 1 else tuple(i for i, third in enumerate(THIRDS) if third in targets)

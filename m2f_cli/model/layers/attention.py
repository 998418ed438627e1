"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops.cpu.attention import attention
from ...ops.cpu.linear import Linear, linear


def refuse_heads(num_heads: int, dim: int) -> None:
    """Refuse a number of heads that the channels cannot be shared by.

    Raises:
        ValueError: it is no divisor of `dim`.
    """
    if type(num_heads) is not int or num_heads < 1 or dim % num_heads:
        raise ValueError(f"{num_heads!r} heads do not divide {dim} channels")


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value inputs; one packed input projection (q, k, v rows).

    Attributes:
        num_heads: a divisor of the width.
        dropout: of the attention weights, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        refuse_heads(num_heads, dim)
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, may_attend_BQS: Tensor | None = None
    ) -> Tensor:
        """Attend; `may_attend_BQS` is True where a query may attend, the same for all heads, or (B, A, Q, S)."""
        [(key_BSC, value_BSC)] = keys_and_values([self], key_BSC, value_BSC)
        return self.attend(query_BQC, key_BSC, value_BSC, may_attend_BQS)

    def attend(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, may_attend_BQS: Tensor | None = None
    ) -> Tensor:
        """Attend to keys and values that are projected already."""
        dim = query_BQC.shape[-1]
        query_BQC = linear(query_BQC, self.in_proj.weight[:dim], self.in_proj.bias[:dim])
        inputs = (query_BQC.to(key_BSC.dtype), key_BSC, value_BSC)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in inputs)
        per_head = may_attend_BQS is None or may_attend_BQS.dim() == 4
        may_attend = may_attend_BQS if per_head else may_attend_BQS.unsqueeze(1)
        attended_BAQD = attention(q, k, v, may_attend=may_attend, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(attended_BAQD.transpose(1, 2).flatten(2).to(query_BQC.dtype))


def keys_and_values(attentions: Sequence[Attention], key_BSC: Tensor, value_BSC: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Project keys and values for several attentions, with one product for all keys and one for all values."""
    dim = key_BSC.shape[-1]

    def project(x_BSC: Tensor, rows: slice) -> tuple[Tensor, ...]:
        weights = [part.in_proj.weight[rows] for part in attentions]
        biases = [part.in_proj.bias[rows] for part in attentions]
        if len(attentions) == 1:
            return (linear(x_BSC, weights[0], biases[0]),)
        return linear(x_BSC, torch.cat(weights), torch.cat(biases)).chunk(len(attentions), dim=-1)

    keys, values = project(key_BSC, slice(dim, 2 * dim)), project(value_BSC, slice(2 * dim, 3 * dim))
    return list(zip(keys, values, strict=True))

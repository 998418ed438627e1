"""Feed-forward networks, dropout and stochastic depth."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cpu.feed_forward import feed_forward
from ...ops.cpu.linear import Linear


class FeedForward(nn.Module):
    """Feed-forward network: linear, ReLU, dropout, linear."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        refuse_dropout(dropout)
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.training and self.dropout:
            return self.linear2(F.dropout(self.linear1(x, "relu"), self.dropout), residual=residual)
        return feed_forward(x, self.linear1, self.linear2, "relu", residual)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU (or "gelu") between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int, activation: str = "relu"):
        super().__init__()
        self.activation = activation
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, self.activation)
        return self.layers[-1](x)


def refuse_dropout(rate: float) -> None:
    """Refuse a rate of dropout that is no probability.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise ValueError(f"dropout is {rate!r}, where 0 to 1 is possible")


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply `F.dropout` in training; draw no random numbers otherwise."""
    return F.dropout(x, rate) if training and rate > 0 else x


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Set whole samples of a residual branch to zero in training, with probability `rate` (stochastic depth)."""
    if rate == 0.0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device, dtype=x.dtype) >= rate
    return x * keep / (1 - rate)

"""Pixel decoders of plain ViTs: tokens in, tokens of one level out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...structures.predictions import Tokens
from ..layers.feed_forward import MLP


def _width(channels: Mapping[int, int]) -> int:
    """Return the width of a backbone's tokens.

    Raises:
        ConfigError: the backbone gives maps at several strides.
    """
    if len(channels) != 1:
        raise ConfigError(
            f"This pixel decoder takes tokens, but the backbone gives maps at the strides {list(channels)}.",
            hint="Set model.backbone.name=vit_tokens, or choose a pixel decoder for maps, such as deformable.",
        )
    return next(iter(channels.values()))


class LastTokens(nn.Module):
    """Pixel decoder that changes nothing: the decoder goes on with the tokens of the last level (EoMT)."""

    kind_of_levels = "tokens"

    def __init__(self, channels: Mapping[int, int]):
        super().__init__()
        self.dim = self.mask_dim = _width(channels)

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(tokens.levels[-1:], tokens.num_prefix, tokens.grid)


class LateralFusion(nn.Module):
    """Sum of all levels (PMT), each normalised over the batch, refined by a residual MLP and scaled per channel.

    Args:
        num_levels: levels of the backbone.
    """

    kind_of_levels = "tokens"

    def __init__(self, channels: Mapping[int, int], num_levels: int):
        super().__init__()
        self.dim = self.mask_dim = dim = _width(channels)
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(num_levels))
        self.mlps = nn.ModuleList(MLP(dim, dim // 2, dim, 2, "gelu") for _ in range(num_levels))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(dim)) for _ in range(num_levels))

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the fused tokens, prefix included.

        Raises:
            ConfigError: the backbone gives another number of levels.
        """
        if len(tokens.levels) != len(self.norms):
            raise ConfigError(
                f"The backbone gives {len(tokens.levels)} levels of tokens, the pixel decoder takes {len(self.norms)}.",
                hint="Set model.pixel_decoder.num_levels to the number of model.backbone.levels.",
            )
        each = zip(tokens.levels, self.norms, self.mlps, self.scales, strict=True)
        fused_BTC = torch.stack([self._lateral(*level) for level in each]).sum(0)
        return Tokens([fused_BTC], tokens.num_prefix, tokens.grid)

    @staticmethod
    def _lateral(level_BTC: Tensor, norm: nn.Module, mlp: nn.Module, scale_C: Tensor) -> Tensor:
        x_BTC = norm(level_BTC.transpose(1, 2)).transpose(1, 2)
        return (x_BTC + mlp(x_BTC)) * scale_C

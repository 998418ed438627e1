"""MaskFormer's pixel decoder with a transformer encoder over stride 32 ("+6Enc" of its tables;
docs/methods/published-behaviour.md#3-6)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..layers import xavier_init
from ..layers.attention import Attention
from ..layers.conv import pointwise
from ..layers.feed_forward import FeedForward, dropout
from ..layers.positions import sine_positions
from .fpn import FPNPixelDecoder


class PlainEncoderLayer(nn.Module):
    """Post-norm: self-attention, then a feed-forward network. Positions enter query and key only."""

    recomputable = True

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.attn = Attention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = dropout

    def forward(self, x_BSC: Tensor, position_SC: Tensor) -> Tensor:
        placed_BSC = x_BSC + position_SC
        attended_BSC = self.attn(placed_BSC, placed_BSC, x_BSC)
        x_BSC = self.norm1(x_BSC + dropout(attended_BSC, self.dropout, self.training))
        return self.norm2(x_BSC + dropout(self.ffn(x_BSC), self.dropout, self.training))


class TransformerFPNPixelDecoder(FPNPixelDecoder):
    """Feature pyramid that starts from an encoded stride 32; a decoder attends to the same map.

    Args:
        num_layers, num_heads, ffn_dim, dropout: of the encoder; 6, 8, 2048 and 0.1 in every published model.
        num_levels: as in `FPNPixelDecoder`, with the encoded stride 32 as the only level.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        num_levels: int = 1,
    ):
        super().__init__(channels, dim, mask_dim, num_levels)
        self.input_proj = nn.Conv2d(channels[32], dim, 1)
        self.layers = nn.ModuleList(PlainEncoderLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        nn.init.kaiming_uniform_(self.input_proj.weight, a=1)
        nn.init.zeros_(self.input_proj.bias)
        xavier_init(self.layers)

    @staticmethod
    def _top_channels(channels: Mapping[int, int], dim: int) -> int:
        return dim

    def encode(self, coarsest_BCHW: Tensor) -> Tensor:
        x_BCHW = pointwise(self.input_proj, coarsest_BCHW)
        size = x_BCHW.shape[-2:]
        position_SC = sine_positions(*size, self.dim, x_BCHW.device)
        x_BSC = x_BCHW.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x_BSC = layer(x_BSC, position_SC)
        return x_BSC.transpose(1, 2).unflatten(2, size)

"""The decoder of PMT: transformer blocks of its own over fused tokens of a frozen ViT (docs/methods/plain-vit.md)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..layers.positions import RotaryPositions
from .query_tokens import QueryTokenDecoder

EPS = 1e-5


class PMTDecoder(QueryTokenDecoder):
    """Decoder of blocks as those of DINOv3, with its rotary positions.

    Args:
        num_blocks: number of blocks; 6 in every published model.
        num_heads: of attention.
        ffn_dim: width of the feed-forward networks.
        masking: `anneal`, `anneal_power` and `masked_prediction` of the base class.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        mask_dim: int,
        num_queries: int,
        num_blocks: int,
        num_heads: int,
        ffn_dim: int,
        **masking: Any,
    ):
        super().__init__(num_classes, in_dim, mask_dim, num_queries, num_blocks, **masking)
        from timm.models.eva import EvaBlock

        self.layers = nn.ModuleList(
            EvaBlock(
                in_dim,
                num_heads,
                mlp_ratio=(ffn_dim + 0.5) / in_dim,  # timm rounds down
                num_prefix_tokens=0,
                rotate_half=True,
                init_values=1.0,
                norm_layer=partial(nn.LayerNorm, eps=EPS),
            )
            for _ in range(num_blocks)
        )
        self.output_norm = nn.LayerNorm(in_dim, eps=EPS)
        self.rope = RotaryPositions(in_dim // num_heads)
        for block in self.layers:
            block.recomputable = True

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def norm(self) -> nn.Module:
        return self.output_norm

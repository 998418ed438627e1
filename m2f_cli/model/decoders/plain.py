"""The decoder of MaskFormer: DETR's, over one level (docs/methods/published-behaviour.md#3-6; MaskFormer, section
3.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor, nn

from ...errors import ConfigError
from ...ops.cpu.linear import Linear
from ...structures.predictions import LayerOutput, PixelFeatures, Prediction
from ..layers import xavier_init
from ..layers.attention import Attention
from ..layers.conv import pointwise
from ..layers.feed_forward import MLP, FeedForward, dropout
from ..layers.positions import sine_positions
from ..layers.precision import full_precision


class PlainLayer(nn.Module):
    """Self-attention, then cross-attention, then a feed-forward network.

    Args:
        pre_norm: normalise the input of each part and not the sum after it.
    """

    recomputable = True

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout, self.pre_norm = dropout, pre_norm

    def forward(self, x_BQC: Tensor, position_QC: Tensor, key_BSC: Tensor, value_BSC: Tensor) -> Tensor:
        def attend_to_each_other(x: Tensor) -> Tensor:
            return self.self_attn(x + position_QC, x + position_QC, x)

        def attend_to_image(x: Tensor) -> Tensor:
            return self.cross_attn(x + position_QC, key_BSC, value_BSC)

        x_BQC = self._residual(x_BQC, attend_to_each_other, self.norm1)
        x_BQC = self._residual(x_BQC, attend_to_image, self.norm2)
        return self._residual(x_BQC, self.ffn, self.norm3)

    def _residual(self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.pre_norm:
            return x + dropout(branch(norm(x)), self.dropout, self.training)
        return norm(x + dropout(branch(x), self.dropout, self.training))


class PlainDecoder(nn.Module):
    """Decoder from queries to classes and masks. Queries start as zeros; their learned positions differ.

    Args:
        num_classes: without "no object".
        in_dim: channels of the level; a 1x1 convolution brings it to `dim` where they differ, or where
            `enforce_input_proj` asks for it.
        mask_dim: channels of the mask features.
        num_layers: 6 in every published model.
        deep_supervision: True if every layer answers, False if only the last one does.
    """

    kind_of_levels, num_levels = "maps", 1

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        mask_dim: int,
        dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        enforce_input_proj: bool = False,
        pre_norm: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.dim, self.deep_supervision = dim, deep_supervision
        self.input_proj = nn.Conv2d(in_dim, dim, 1) if in_dim != dim or enforce_input_proj else None
        self.query_embed = nn.Embedding(num_queries, dim)
        # Not "layers" and "norm" as in Mask2Former's decoder: other tools call the two differently (weights/tables.py).
        self.blocks = nn.ModuleList(PlainLayer(dim, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)
        self.class_embed: nn.Module = Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        if self.input_proj is not None:
            nn.init.kaiming_uniform_(self.input_proj.weight, a=1)
            nn.init.zeros_(self.input_proj.bias)
        xavier_init(self.blocks)

    def forward(self, features: PixelFeatures, pilots: None = None) -> Prediction:
        """Return the predictions of the layers that answer.

        Raises:
            ConfigError: there are pilots, which this decoder cannot use.
        """
        if pilots is not None:
            raise ConfigError(
                "Pilot queries steer masked attention, and MaskFormer's decoder has none.",
                hint="Use a Mask2Former preset, or train without model.piloting.",
            )
        # Outside training fp32, as Mask2Former's.
        with contextlib.nullcontext() if self.training else full_precision(features.mask_features_BCHW.device):
            return self.decode(features)

    def decode(self, features: PixelFeatures) -> Prediction:
        [level_BCHW] = features.levels
        level_BCHW = level_BCHW if self.training else level_BCHW.float()  # it has the format of the backbone
        position_SC = sine_positions(*level_BCHW.shape[-2:], self.dim, level_BCHW.device)
        level_BCHW = level_BCHW if self.input_proj is None else pointwise(self.input_proj, level_BCHW)
        value_BSC = level_BCHW.flatten(2).transpose(1, 2)
        key_BSC = value_BSC + position_SC
        position_QC = self.query_embed.weight
        x_BQC = position_QC.new_zeros(level_BCHW.shape[0], *position_QC.shape)
        outputs = []
        for i, block in enumerate(self.blocks, start=1):
            x_BQC = block(x_BQC, position_QC, key_BSC, value_BSC)
            if self.deep_supervision or i == len(self.blocks):
                outputs.append(self.predict(x_BQC))
        return Prediction(features.mask_features_BCHW, outputs)

    def predict(self, x_BQC: Tensor) -> LayerOutput:
        """Return class logits and mask embeddings of the queries after a layer."""
        x_BQC = self.output_norm(x_BQC)
        return LayerOutput(self.class_embed(x_BQC), self.mask_embed(x_BQC))

"""The masked-attention decoder of Mask2Former (docs/methods/published-behaviour.md#3-5).

Queries attend only where their last mask was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cpu.chunking import CHUNK_ELEMENTS
from ...ops.cpu.linear import Linear
from ...ops.dispatch import is_tracing
from ...structures.predictions import LayerOutput, PixelFeatures, Prediction
from ..attention_masks import masked_attention
from ..layers import xavier_init
from ..layers.attention import Attention, keys_and_values
from ..layers.feed_forward import MLP, FeedForward
from ..layers.positions import sine_positions
from ..layers.precision import full_precision

if TYPE_CHECKING:
    from ..pilots import Pilots


def _is_shared(key_BSC: Tensor, layers: int) -> bool:
    """Return True if so many layers share the products of a level. On a CPU, large ones would need too much memory."""
    if is_tracing() or torch.is_grad_enabled() or key_BSC.device.type != "cpu":
        return True
    return layers * key_BSC.numel() <= CHUNK_ELEMENTS


class DecoderLayer(nn.Module):
    """Post-norm: masked cross-attention, then self-attention, then a feed-forward network."""

    recomputable = True

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.cross_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x_BQC: Tensor,
        position_QC: Tensor | float,
        key_BSC: Tensor,
        value_BSC: Tensor,
        may_attend_BQS: Tensor,
        may_see_1QQ: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer to queries; keys and values are those of `keys_and_values`."""
        x_BQC = self.norm1(x_BQC + self.cross_attn.attend(x_BQC + position_QC, key_BSC, value_BSC, may_attend_BQS))
        placed_BQC = x_BQC + position_QC
        x_BQC = self.norm2(x_BQC + self.self_attn(placed_BQC, placed_BQC, x_BQC, may_see_1QQ))
        return self.norm3(x_BQC + self.ffn(x_BQC))


class MaskedDecoder(nn.Module):
    """Decoder from queries to classes and masks.

    Args:
        num_classes: without "no object".
        in_dim: channels of the levels; a 1x1 convolution brings them to `dim` where they differ.
        mask_dim: channels of the mask features.
        num_layers: 9 in every published model (the original configuration counts one more). Layer i attends to
            level i mod `num_levels`.
        piloted: each class has an embedding that pilot queries start from in training (MP-Former,
            docs/methods/published-behaviour.md#6-1).
        query_positions: whether queries have learned positions; None: unless `piloted`, as published.
    """

    kind_of_levels = "maps"

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
        num_levels: int = 3,
        piloted: bool = False,
        query_positions: bool | None = None,
    ):
        super().__init__()
        has_positions = not piloted if query_positions is None else query_positions
        self.dim, self.num_heads, self.num_levels = dim, num_heads, num_levels
        self.input_projs = nn.ModuleList(
            nn.Conv2d(in_dim, dim, 1) if in_dim != dim else nn.Identity() for _ in range(num_levels)
        )
        self.level_embed = nn.Embedding(num_levels, dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim) if has_positions else None
        self.label_embed = nn.Embedding(num_classes, dim) if piloted else None
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.class_embed = Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        xavier_init(self.layers)

    def forward(self, features: PixelFeatures, pilots: Pilots | None = None) -> Prediction:
        """Return the predictions of all layers, the one before the first layer included.

        Args:
            pilots: MP-Former's queries of this batch; they come before the ordinary ones in every layer's answers.
        """
        mask_features_BCHW = features.mask_features_BCHW
        # Outside training all but keys and values is fp32: these few numbers decide which pixels are attended to.
        exact = contextlib.nullcontext if self.training else partial(full_precision, mask_features_BCHW.device)
        sizes = [tuple(level_BCHW.shape[-2:]) for level_BCHW in features.levels]
        small = [
            F.interpolate(mask_features_BCHW, size=size, mode="bilinear", align_corners=False).flatten(2)
            for size in sizes
        ]
        x_BQC, position_QC, may_see_1QQ = self.queries(mask_features_BCHW.shape[0], pilots)
        with exact():
            outputs = [self.predict(x_BQC)]
        for i, (layer, memory) in enumerate(zip(self.layers, self.memories(features.levels), strict=True)):
            level = i % len(sizes)
            with exact():
                may_attend_BQS = masked_attention(outputs[-1].mask_embeds_BQC, small[level])
                if pilots is not None:
                    may_attend_BQS = pilots.guide(may_attend_BQS, i, sizes[level], self.num_heads)
                x_BQC = layer(x_BQC, position_QC, *memory, may_attend_BQS, may_see_1QQ)
                outputs.append(self.predict(x_BQC))
        return Prediction(mask_features_BCHW, outputs)

    def memories(self, levels: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the projected keys and values of each layer.

        Layers that attend to the same level share the products. Those of a large level in prediction on a CPU do not:
        there it gains no time and needs the memory of all layers.
        """
        inputs = []
        for i, level_BCHW in enumerate(levels):
            with full_precision(level_BCHW.device):
                value_BSC = self.input_projs[i](level_BCHW).flatten(2).transpose(1, 2) + self.level_embed.weight[i]
                key_BSC = value_BSC + sine_positions(*level_BCHW.shape[-2:], self.dim, level_BCHW.device)
                inputs.append((key_BSC, value_BSC))
        ready: dict[int, tuple[Tensor, Tensor]] = {}
        for i in range(len(self.layers)):
            if i not in ready:
                memory = inputs[i % len(levels)]
                same = range(i, len(self.layers), len(levels))
                numbers = same if _is_shared(memory[0], len(same)) else [i]
                attentions = [self.layers[number].cross_attn for number in numbers]
                ready.update(zip(numbers, keys_and_values(attentions, *memory), strict=True))
            yield ready.pop(i)

    def queries(self, batch: int, pilots: Pilots | None) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """Return what the queries start from, their positions, and who sees whom in self-attention (None: all)."""
        x_BQC = self.query_feat.weight.expand(batch, -1, -1)
        position_QC = 0.0 if self.query_embed is None else self.query_embed.weight
        if pilots is None:
            return x_BQC, position_QC, None
        x_BQC = torch.cat([pilots.content(self.label_embed), x_BQC], dim=1)
        if self.query_embed is not None:  # pilots have none: their masks say where to attend
            position_QC = F.pad(position_QC, (0, 0, len(pilots), 0))
        return x_BQC, position_QC, pilots.visibility(len(self.query_feat.weight))

    def predict(self, x_BQC: Tensor) -> LayerOutput:
        """Return class logits and mask embeddings of the queries after a layer."""
        x_BQC = self.norm(x_BQC)
        return LayerOutput(self.class_embed(x_BQC), self.mask_embed(x_BQC))

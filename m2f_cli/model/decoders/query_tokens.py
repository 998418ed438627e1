"""Decoders whose queries are tokens: they attend, together with the tokens of the image, in ordinary self-attention.

EoMT (Kerssies et al., CVPR 2025) and PMT differ in where the blocks come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...ops.cpu.linear import Linear
from ...ops.point_sampling import uniform
from ...structures.predictions import LayerOutput, Prediction, Tokens
from ..layers.conv import ChannelNorm, Doubling, convolved
from ..layers.feed_forward import MLP

Span = Sequence[float]  # start and end of an annealing
MASKING = ("anneal", "anneal_power", "masked_prediction")  # options of every such decoder


class Upscale(nn.Module):
    """Doubling of a map: transposed convolution, GELU, depthwise convolution, norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = Doubling(dim, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = ChannelNorm(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(convolved(self.conv2, self.conv1(x_BCHW, "gelu")))


def published_spans(num_blocks: int) -> list[Span]:
    """Return the annealing of EoMT's DINOv2 models: each lasts a sixth of the training, the first begins after one,
    the last ends before the last one."""
    starts = [(1 + 3 * i / max(num_blocks - 1, 1)) / 6 for i in range(num_blocks)]
    return [(start, start + 1 / 6) for start in starts]


class QueryTokenDecoder(nn.Module):
    """Base class: queries, heads, masks of attention and their annealing. Subclasses have `blocks`, `norm` and `rope`.

    In training, queries attend to a patch only where their mask covers it. The probability of that falls from 1 to 0,
    block by block, so prediction needs no masks and answers once, after the last block.

    Args:
        num_classes: without "no object".
        in_dim, mask_dim: width of tokens and queries; both the same.
        num_blocks: number of blocks that queries pass.
        anneal: (start, end) for each block, as shares of the training, or as steps where above 1. None: as
            `published_spans`.
        anneal_power: exponent of the fall.
        masked_prediction: whether there are masks outside training, too, with the probabilities of the last step.

    Attributes:
        attn_mask_probs: (num_blocks,) probability that a query has its mask.

    Raises:
        ConfigError: widths differ, or `anneal` does not fit the blocks.
    """

    kind_of_levels = "tokens"

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        mask_dim: int,
        num_queries: int,
        num_blocks: int,
        anneal: Sequence[Span] | None = None,
        anneal_power: float = 0.9,
        masked_prediction: bool = False,
    ):
        super().__init__()
        if in_dim != mask_dim:
            raise ConfigError(f"Queries among tokens need one width, not {in_dim} and {mask_dim}.")
        spans = published_spans(num_blocks) if anneal is None else anneal
        if len(spans) != num_blocks or any(len(span) != 2 or not 0 <= span[0] < span[1] for span in spans):
            raise ConfigError(f"anneal is {anneal}, where [start, end] is needed for each of {num_blocks} blocks.")
        self.spans, self.anneal_power, self.masked_prediction = spans, float(anneal_power), masked_prediction
        self.rand = uniform
        self.query_feat = nn.Embedding(num_queries, in_dim)
        self.class_embed = Linear(in_dim, num_classes + 1)
        self.mask_embed = MLP(in_dim, in_dim, in_dim, 3, "gelu")
        self.upscale = nn.Sequential(Upscale(in_dim), Upscale(in_dim))
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))

    blocks: Iterable[nn.Module]
    norm: nn.Module
    rope: nn.Module | None

    def at_step(self, step: int, total: int) -> None:
        """Set the probabilities of masks for a step of training, counted from 0, of `total` steps."""
        probs = []
        for span in self.spans:
            start, end = (value if value > 1 else value * total for value in span)
            left = 1 - (step - start) / max(end - start, 1e-9)  # of a share and a step, the end may come first
            probs.append(min(1.0, max(0.0, left)) ** self.anneal_power)
        self.attn_mask_probs.copy_(torch.tensor(probs))

    def forward(self, tokens: Tokens, pilots: None = None) -> Prediction:
        """Return one prediction, or with masks one before each block and the last.

        Raises:
            ConfigError: there are pilots, which this decoder cannot use.
        """
        if pilots is not None:
            raise ConfigError(
                "Pilot queries steer cross-attention, which a decoder with queries among the tokens does not have.",
                hint="Use a Mask2Former preset, or train without model.piloting.",
            )
        [x_BTC] = tokens.levels
        x_BTC = torch.cat([self.query_feat.weight.to(x_BTC.dtype).expand(len(x_BTC), -1, -1), x_BTC], dim=1)
        rope = {} if self.rope is None else {"rope": self._rotation(tokens)}
        outputs = []
        for i, block in enumerate(self.blocks):
            mask_B1TT = None
            if self.training or self.masked_prediction:
                outputs.append(self.predict(x_BTC, tokens))
                mask_B1TT = self._may_attend(outputs[-1], x_BTC.shape[1], tokens, i)
            x_BTC = block(x_BTC, **rope, attn_mask=mask_B1TT)
        outputs.append(self.predict(x_BTC, tokens))
        return Prediction(outputs[-1].mask_features_BCHW, outputs)

    def predict(self, x_BTC: Tensor, tokens: Tokens) -> LayerOutput:
        """Return class logits, mask embeddings and mask features of the tokens before or after a block."""
        x_BTC = self.norm(x_BTC)
        num_queries = len(self.query_feat.weight)
        queries_BQC, patches_BSC = x_BTC[:, :num_queries], x_BTC[:, num_queries + tokens.num_prefix :]
        features_BCHW = self.upscale(patches_BSC.transpose(1, 2).unflatten(2, tokens.grid))
        return LayerOutput(self.class_embed(queries_BQC), self.mask_embed(queries_BQC), features_BCHW.float())

    @torch.no_grad()
    def _may_attend(self, output: LayerOutput, length: int, tokens: Tokens, block: int) -> Tensor:
        """Return who attends to whom, (B, 1, T, T): all to all, but queries with a mask to patches inside it only.

        Resizing is linear, so masks of resized features are the resized masks: no full-size mask is rendered.
        """
        features_BCHW = F.interpolate(output.mask_features_BCHW, tokens.grid, mode="bilinear", align_corners=False)
        seen_BQS = output.mask_embeds_BQC.to(features_BCHW.dtype) @ features_BCHW.flatten(2) > 0
        batch, num_queries, num_patches = seen_BQS.shape
        is_open_BQ = self.rand((batch, num_queries), seen_BQS.device) > self.attn_mask_probs[block]
        mask_B1TT = seen_BQS.new_ones(batch, 1, length, length)
        mask_B1TT[:, 0, :num_queries, length - num_patches :] = seen_BQS | is_open_BQ[..., None]
        return mask_B1TT

    def _rotation(self, tokens: Tokens) -> Tensor:
        """Return timm's rotary embedding of all tokens; it leaves queries and prefix tokens as they are."""
        patches_S2D = self.rope.get_embed(tokens.grid)
        sin_S, cos_S = patches_S2D.chunk(2, dim=-1)
        num_others = len(self.query_feat.weight) + tokens.num_prefix
        return torch.cat([F.pad(sin_S, (0, 0, num_others, 0)), F.pad(cos_S, (0, 0, num_others, 0), value=1.0)], dim=-1)

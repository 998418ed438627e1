"""The pixel decoder of Mask2Former: a deformable transformer encoder over strides 32, 16, 8, and one FPN step to
stride 4 (docs/methods/published-behaviour.md#3-4)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cache import cached_by_shape
from ...ops.compiled import CompilableOp
from ...ops.cpu.chunking import in_chunks
from ...ops.cpu.linear import Linear
from ...ops.deformable_attention import deform_attn
from ...ops.dispatch import is_tracing
from ...structures.predictions import PixelFeatures
from ..layers import xavier_init
from ..layers.attention import refuse_heads
from ..layers.conv import ConvNorm, channels_last, group_norm, pointwise
from ..layers.feed_forward import FeedForward
from ..layers.positions import sine_positions
from ..layers.precision import full_precision, is_half

Shapes = tuple[tuple[int, int], ...]


@cached_by_shape
def centres(shapes: Shapes, device: torch.device) -> Tensor:
    """Return the centre of each token, (S, 2): x and y as parts of width and height."""
    parts = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        parts.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1))
    return torch.cat(parts)


@cached_by_shape
def level_sizes(shapes: Shapes, heads: int, points: int, device: torch.device) -> Tensor:
    """Return width and height of the level of each sample, (2, A·L·P), in the order of the sampling offsets."""
    sizes_L2 = torch.tensor(shapes, dtype=torch.float32, device=device).flip(1)
    return sizes_L2.T.repeat_interleave(points, 1).repeat(1, heads)


def reference_points(centres_S2: Tensor, sizes_2X: Tensor) -> Tensor:
    """Return centres in pixels of every level, (S, 2·A·L·P); 0 is the centre of the first pixel.

    The order is that of the sampling offsets: a block of x, a block of y. The result is not cached: to compute it costs
    less than to read it from memory.
    """
    return (centres_S2[:, :, None] * sizes_2X - 0.5).flatten(1)


def softmax_of_few(x: Tensor) -> Tensor:
    """Compute the softmax over a short last axis, for which PyTorch's CPU kernel is slow."""
    return _softmax(x) if torch.is_grad_enabled() or is_tracing() or x.device.type != "cpu" else softmax_on_cpu(x)


def _softmax(x: Tensor) -> Tensor:
    exponentials = (x - x.amax(-1, keepdim=True).detach()).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


softmax_on_cpu = CompilableOp(_softmax)  # without gradients


class DeformableAttention(nn.Module):
    """Attention of each query to `num_points` points per level and head, around a reference point.

    The rows of `sampling_offsets` are ordered (x or y, head, level, point), so that x and y come out as two blocks.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        refuse_heads(num_heads, dim)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = Linear(dim, 2 * num_heads * num_levels * num_points)
        self.attention_weights = Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        self._init()

    def _init(self) -> None:
        """Start points on squares around the reference: head h in direction 2πh/heads, point p at p+1 pixels."""
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for predictor in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(predictor.weight)
            nn.init.zeros_(predictor.bias)
        # On the CPU even if the parameters are on the meta device: arithmetic there imports PyTorch's compiler.
        angles = torch.arange(self.num_heads, device="cpu") * (2 * math.pi / self.num_heads)
        directions_2A = torch.stack([angles.cos(), angles.sin()])
        directions_2A = directions_2A / directions_2A.abs().amax(0)
        offsets = directions_2A[:, :, None, None] * torch.arange(1, self.num_points + 1, device="cpu")
        with torch.no_grad():
            bias = self.sampling_offsets.bias.view(2, self.num_heads, self.num_levels, self.num_points)
            bias.copy_(offsets.expand_as(bias))

    def forward(
        self,
        query_BNC: Tensor,
        value_BSC: Tensor,
        references: Tensor,
        shapes: Shapes,
        valid_BS: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            references: (N, 2·A·L·P) or (B, N, 2·A·L·P), the reference point of each query in pixels of each level, the
                same for all heads and points, in the order of the sampling offsets.
            valid_BS: False where a value is padding and counts as zero.
            residual: added to the result.
        """
        return self.sample(query_BNC, self.values(value_BSC, valid_BS), references, shapes, residual)

    def values(self, value_BSC: Tensor, valid_BS: Tensor | None = None) -> Tensor:
        """Project the values that `sample` sums, (B, S, A, D)."""
        value_BSC = self.value_proj(value_BSC).float()
        if valid_BS is not None:
            value_BSC = value_BSC * valid_BS[..., None]
        return value_BSC.unflatten(-1, (self.num_heads, -1))

    def sample(
        self, query_BNC: Tensor, value_BSAD: Tensor, references: Tensor, shapes: Shapes, residual: Tensor | None = None
    ) -> Tensor:
        """Compute the rest of `forward`, in fp32 up to the last product. Queries are independent of each other."""
        with full_precision(query_BNC.device):
            B, N, _ = query_BNC.shape
            heads_levels_points = (self.num_heads, self.num_levels, self.num_points)
            points_BNX = self.sampling_offsets(query_BNC, residual=references.expand(B, -1, -1))
            x, y = points_BNX.view(B, N, 2, *heads_levels_points).unbind(2)
            weights = softmax_of_few(self.attention_weights(query_BNC).view(B, N, self.num_heads, -1))
            sampled_BNC = deform_attn(value_BSAD, shapes, x, y, weights.view(B, N, *heads_levels_points))
        return self.output_proj(sampled_BNC, residual=residual)


class EncoderLayer(nn.Module):
    """Post-norm layer: deformable self-attention, then a feed-forward network. Positions enter the query only."""

    recomputable = True

    def __init__(self, dim: int, ffn_dim: int, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        self.attn = DeformableAttention(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.norm2 = nn.LayerNorm(dim)
        xavier_init(self.ffn)

    def forward(self, x_BSC: Tensor, position_SC: Tensor, centres_S2: Tensor, shapes: Shapes) -> Tensor:
        """Apply the layer. Under autocast only values, output projection and feed-forward network are not fp32."""
        value_BSAD = self.attn.values(x_BSC)
        sizes = level_sizes(shapes, self.attn.num_heads, self.attn.num_points, x_BSC.device)

        def attend_and_feed_forward(x_BNC: Tensor, position_NC: Tensor, centres_N2: Tensor) -> Tensor:
            references = reference_points(centres_N2, sizes)
            x_BNC = self.norm1(self.attn.sample(x_BNC + position_NC, value_BSAD, references, shapes, x_BNC).float())
            return self.norm2(self.ffn(x_BNC, residual=x_BNC).float())

        return in_chunks(attend_and_feed_forward, self.ffn.linear1.out_features, x_BSC, position_SC, centres_S2)


class DeformablePixelDecoder(nn.Module):
    """Multi-scale deformable attention pixel decoder.

    Under autocast, feed-forward networks, value and output projections and all of stride 4 have the lower precision:
    most of the arithmetic and little of the error. Sampling points, attention weights, sums, norms and the result stay
    fp32. Training in fp16 is fp32 throughout, as published, because gradients leave the range of fp16.

    Args:
        channels: of the backbone's features, by stride.
        dim: width of the encoder; mask_dim: channels of the mask features.
        num_layers, ffn_dim, num_heads, num_points: of the encoder. The published feed-forward width is 1024,
            whatever the original configuration files say.
    """

    encoder_strides = (32, 16, 8)
    kind_of_levels, num_levels = "maps", len(encoder_strides)

    def __init__(
        self,
        channels: Mapping[int, int],
        dim: int,
        mask_dim: int,
        num_layers: int,
        ffn_dim: int,
        num_heads: int,
        num_points: int,
    ):
        super().__init__()
        self.dim, self.mask_dim = dim, mask_dim
        self.input_projs = nn.ModuleList(
            ConvNorm(channels[stride], dim, 1, group_norm, bias=True) for stride in self.encoder_strides
        )
        self.level_embed = nn.Parameter(torch.empty(len(self.encoder_strides), dim))
        nn.init.normal_(self.level_embed)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, ffn_dim, len(self.encoder_strides), num_heads, num_points) for _ in range(num_layers)
        )
        self.lateral = ConvNorm(channels[4], dim, 1, group_norm)
        self.output = ConvNorm(dim, dim, 3, group_norm, relu=True)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        for proj in self.input_projs:
            nn.init.xavier_uniform_(proj.conv.weight)
            nn.init.zeros_(proj.conv.bias)
        for conv in (self.lateral.conv, self.output.conv, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: Mapping[int, Tensor]) -> PixelFeatures:
        device = features[4].device
        is_exact = self.training and is_half(device)
        with full_precision(device) if is_exact else contextlib.nullcontext():
            levels = self.encode([features[stride].float() for stride in self.encoder_strides])
            lateral = channels_last(self.lateral(features[4].float() if is_exact else features[4]))
            coarse = channels_last(levels[-1].to(lateral.dtype))
            upsampled = F.interpolate(coarse, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            fine = upsampled.add_(lateral)  # in place: this is the largest map
            y_BCHW = self.output(fine)
            return PixelFeatures(pointwise(self.mask_features, y_BCHW).float(), levels)

    def encode(self, features: list[Tensor]) -> list[Tensor]:
        """Apply the deformable encoder to feature maps, coarse to fine."""
        with full_precision(features[0].device):
            maps = [proj(feature) for proj, feature in zip(self.input_projs, features, strict=True)]
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        device = maps[0].device
        x_BSC = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        position_SC = torch.cat(
            [sine_positions(h, w, self.dim, device) + self.level_embed[i] for i, (h, w) in enumerate(shapes)]
        )
        centres_S2 = centres(shapes, device)
        for layer in self.layers:
            x_BSC = layer(x_BSC, position_SC, centres_S2, shapes)
        parts = x_BSC.split([h * w for h, w in shapes], dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]

"""Swin Transformer (Liu et al. 2021) as a backbone for dense prediction (docs/methods/published-behaviour.md#3-3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cpu.attention import attention
from ...ops.cpu.chunking import CHUNK_ELEMENTS, in_chunks, in_fp32
from ...ops.cpu.feed_forward import feed_forward
from ...ops.cpu.linear import Linear
from ...ops.dispatch import is_tracing
from ..layers.attention import refuse_heads
from ..layers.feed_forward import drop_path
from .swin_windows import Windows, ceil_div, relative_index, windows_of


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        refuse_heads(num_heads, dim)
        self.num_heads, self.window = num_heads, window
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x_BSC: Tensor, windows: Windows, residual: Tensor | None = None) -> Tensor:
        if windows.padded:  # norm came before padding: a padded token is a zero vector, and is attended to
            padded_BSC = F.pad(x_BSC, (0, 0, 0, 1))
        else:
            padded_BSC = x_BSC
        tokens_RC, bias = padded_BSC.flatten(0, 1), self._bias()
        if torch.is_grad_enabled() or is_tracing():
            attended_RC = self._attended(windows.gather(self.qkv(tokens_RC)), windows, 0, bias)
        else:
            attended_RC = self.attended_in_chunks(tokens_RC, windows, bias)
        return self.proj(windows.scatter(attended_RC).view_as(x_BSC), residual=residual)

    def attended_in_chunks(self, tokens_RC: Tensor, windows: Windows, bias: Tensor) -> Tensor:
        step, tokens = self.windows_at_once(tokens_RC, len(windows.source)), self.window**2
        if step is None:
            qkv_RC = windows.gather(self.qkv(tokens_RC))
            return self._attended(qkv_RC, windows, 0, bias, qkv_RC.new_empty(len(qkv_RC), tokens_RC.shape[1]))
        attended_RC: Tensor | None = None
        for first, part in enumerate(windows.source.split(step * tokens)):
            qkv_RC = self.qkv(tokens_RC.index_select(0, part))
            if attended_RC is None:
                attended_RC = qkv_RC.new_empty(len(windows.source), tokens_RC.shape[1])
            rows = slice(first * step * tokens, first * step * tokens + len(part))
            self._attended(qkv_RC, windows, first * step, bias, attended_RC[rows])
        return attended_RC

    def windows_at_once(self, tokens_RC: Tensor, positions: int) -> int | None:
        """Return how many windows to project and attend in together; None for all, each token projected once.

        In prediction on a CPU, the projections of a large map are the largest tensors of the backbone. The C library
        would ask the system for new pages each time. In chunks padding is projected, too: a few percent of a large map.
        """
        C = tokens_RC.shape[-1]
        if tokens_RC.device.type != "cpu":
            return None
        window = in_fp32(3 * C * self.window**2, tokens_RC)
        return max(1, CHUNK_ELEMENTS // window) if in_fp32(3 * C * positions, tokens_RC) > 2 * CHUNK_ELEMENTS else None

    def _attended(
        self, qkv_RC: Tensor, windows: Windows, first: int, bias: Tensor, out_RC: Tensor | None = None
    ) -> Tensor:
        """Attend in the windows from number `first` on, (W·T, C). out_RC: where to write; without gradients."""
        tokens = self.window**2
        channels = qkv_RC.shape[1] // 3 // self.num_heads
        q, k, v = qkv_RC.view(-1, tokens, 3, self.num_heads, channels).permute(2, 0, 3, 1, 4)
        out = None if out_RC is None else out_RC.view(-1, tokens, self.num_heads, channels)
        plain = max(0, windows.plain - first)  # of these windows
        if windows.mask is None or plain >= len(q):
            return _attend(q, k, v, bias, out)
        mask = windows.mask
        if out_RC is not None:  # some windows only; a tracer would fix the length of this slice
            mask = mask[first + plain - windows.plain :][: len(q) - plain]
        cut = _attend(q[plain:], k[plain:], v[plain:], bias + mask, None if out is None else out[plain:])
        if not plain:
            return cut
        whole = _attend(q[:plain], k[:plain], v[:plain], bias, None if out is None else out[:plain])
        return torch.cat([whole, cut]) if out_RC is None else out_RC

    def _bias(self) -> Tensor:
        tokens = self.window**2
        table = self.relative_position_bias_table[relative_index(self.window, self.relative_position_bias_table.device)]
        return table.view(tokens, tokens, self.num_heads).permute(2, 0, 1)[None].contiguous()


def _attend(q_WATD: Tensor, k_WATD: Tensor, v_WATD: Tensor, bias: Tensor, out_WTAD: Tensor | None) -> Tensor:
    """Attend in each window, (W·T, C), tokens in window order."""
    attended_WATD = attention(q_WATD, k_WATD, v_WATD, bias, out_BQAD=out_WTAD)
    return attended_WATD.transpose(1, 2).flatten(2).flatten(0, 1)


class Block(nn.Module):
    """Pre-norm transformer block: window attention, then an MLP with exact GELU."""

    recomputable = True

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path_rate: float):
        super().__init__()
        self.shift, self.drop_path_rate = shift, drop_path_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x_BSC: Tensor, windows: Windows) -> Tensor:
        if self.training and self.drop_path_rate:
            x_BSC = x_BSC + drop_path(self.attn(self.norm1(x_BSC), windows), self.drop_path_rate, True)
            return x_BSC + drop_path(self.mlp(x_BSC), self.drop_path_rate, True)
        x_BSC = self.attn(self.norm1(x_BSC), windows, residual=x_BSC)
        return in_chunks(lambda x: self.mlp(x, residual=x), self.fc1.out_features, x_BSC)

    def mlp(self, x_BSC: Tensor, residual: Tensor | None = None) -> Tensor:
        return feed_forward(self.norm2(x_BSC), self.fc1, self.fc2, "gelu", residual)


class PatchMerging(nn.Module):
    """Merging of four neighbouring tokens into one of twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BSC: Tensor, height: int, width: int) -> Tensor:
        padding = (0, 0, 0, 2 * ceil_div(width, 2) - width, 0, 2 * ceil_div(height, 2) - height)
        x = F.pad(x_BSC.unflatten(1, (height, width)), padding)
        # (row, column) parities in the order of the published weights: 00, 10, 01, 11
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x.flatten(1, 2)))


class PatchEmbed(nn.Module):
    """Embedding of patches: a token per 4x4 pixels, then LayerNorm.

    Images are padded right and bottom to a multiple of 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, int, int]:
        height, width = images_BCHW.shape[-2:]
        rows, columns = ceil_div(height, 4), ceil_div(width, 4)
        x = self.proj(F.pad(images_BCHW, (0, 4 * columns - width, 0, 4 * rows - height)))
        return self.norm(x.flatten(2).transpose(1, 2)), rows, columns


class SwinStage(nn.Module):
    """Blocks of one resolution, and the merging after them."""

    def __init__(self, dim: int, drop_path_rates: Sequence[float], num_heads: int, window: int, merge: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window, shift=window // 2 if j % 2 else 0, drop_path_rate=rate)
            for j, rate in enumerate(drop_path_rates)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x_BSC: Tensor, height: int, width: int) -> Tensor:
        """Apply all blocks, but not the merging, which comes after the norm of the stage."""
        shifts = {block.shift for block in self.blocks}
        windows = {
            shift: windows_of(x_BSC.shape[0], height, width, self.window, shift, x_BSC.device) for shift in shifts
        }
        for block in self.blocks:
            x_BSC = block(x_BSC, windows[block.shift])
        return x_BSC


class Swin(nn.Module):
    """Swin-T/S/B/L: features at strides 4, 8, 16, 32, each with a LayerNorm of its own.

    Args:
        embed_dim, depths, num_heads, window_size: the size, T, S, B or L (docs/methods/published-behaviour.md#swin).
        drop_path: stochastic depth of the last block; it rises linearly from 0. 0.3 in every recipe.
        pretrained: where the ImageNet weights come from; read by training only.
    """

    new_parts = ("norms",)

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path: float,
        *,
        pretrained: str | None = None,
    ):
        super().__init__()
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.channels = {4 * 2**i: dim for i, dim in enumerate(dims)}
        self.patch_embed = PatchEmbed(embed_dim)
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        starts = [sum(depths[:i]) for i in range(len(depths))]
        self.stages = nn.ModuleList(
            SwinStage(dim, rates[start : start + depth], heads, window_size, merge=i < len(depths) - 1)
            for i, (dim, start, depth, heads) in enumerate(zip(dims, starts, depths, num_heads, strict=True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, images_BCHW: Tensor) -> dict[int, Tensor]:
        x, height, width = self.patch_embed(images_BCHW)
        features = {}
        for stride, stage, norm in zip(self.channels, self.stages, self.norms, strict=True):
            x = stage(x, height, width)
            features[stride] = norm(x).transpose(1, 2).unflatten(2, (height, width))
            if stage.downsample is not None:
                x = stage.downsample(x, height, width)
                height, width = ceil_div(height, 2), ceil_div(width, 2)
        return features

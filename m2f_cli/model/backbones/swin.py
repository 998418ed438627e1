"""Swin Transformer (Liu et al. 2021) as a backbone for dense prediction, as in docs/methods/published-behaviour.md#3-3.

Windows are gathered by index instead of being padded, rolled and cut: only real tokens pass through the projections,
and only the windows that touch a shifted border get a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cache import cached_by_shape
from ...ops.cpu.attention import attention
from ...ops.cpu.chunking import PIECE, in_fp32, in_pieces, is_tracing
from ...ops.cpu.feed_forward import feed_forward
from ...ops.cpu.linear import Linear
from ..layers import drop_path


class Windows(NamedTuple):
    """How the tokens of a batch of feature maps fall into windows. T = window², W = windows of the whole batch.

    source: (W·T,) which token stands at each place of each window. Tokens are numbered over the batch; each picture
        has one more token after its own (number S) that stands for all padding, when `padded`.
    target: (B·S,) where each token went.
    pads: (B, places) the places that padding fills, when `padded`.
    plain: the first so many windows need no mask.
    mask: (W - plain, 1, T, T) what is added to the attention logits of the others: 0, or -100 between regions.
    """

    source: Tensor
    target: Tensor
    pads: Tensor | None
    plain: int
    mask: Tensor | None
    padded: bool

    def gather(self, x_RC: Tensor) -> Tensor:
        """(B·(S + padded), C) tokens → (W·T, C) in window order."""
        return _Gather.apply(x_RC, self) if x_RC.requires_grad else x_RC.index_select(0, self.source)

    def scatter(self, x_RC: Tensor) -> Tensor:
        """(W·T, C) in window order → (B·S, C) tokens; padding is dropped."""
        return _Scatter.apply(x_RC, self) if x_RC.requires_grad else x_RC.index_select(0, self.target)

    def with_padding(self, x_RC: Tensor, padding_BC: Tensor) -> Tensor:
        """(B·S, C) tokens and one padding token per picture → (B·(S + 1), C)."""
        x_BSC = x_RC.unflatten(0, (len(padding_BC), -1))
        return torch.cat([x_BSC, padding_BC[:, None]], dim=1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """`Windows.gather`, whose gradient is the way back. PyTorch's own would add up the padding's gradients in an order
    that depends on its threads: two equal runs would differ in the last digit."""

    @staticmethod
    def forward(ctx, x_RC: Tensor, windows: Windows) -> Tensor:
        ctx.windows = windows
        return x_RC.index_select(0, windows.source)

    @staticmethod
    def backward(ctx, grad_RC: Tensor) -> tuple[Tensor, None]:
        windows = ctx.windows
        tokens_RC = grad_RC.index_select(0, windows.target)
        if not windows.padded:
            return tokens_RC, None
        padding_BC = grad_RC.index_select(0, windows.pads.flatten()).unflatten(0, windows.pads.shape).sum(1)
        return windows.with_padding(tokens_RC, padding_BC), None


class _Scatter(torch.autograd.Function):
    """`Windows.scatter`, whose gradient is the way there: nothing comes from the padding."""

    @staticmethod
    def forward(ctx, x_RC: Tensor, windows: Windows) -> Tensor:
        ctx.windows = windows
        return x_RC.index_select(0, windows.target)

    @staticmethod
    def backward(ctx, grad_RC: Tensor) -> tuple[Tensor, None]:
        windows = ctx.windows
        if windows.padded:
            grad_RC = windows.with_padding(grad_RC, grad_RC.new_zeros(len(windows.pads), grad_RC.shape[1]))
        return grad_RC.index_select(0, windows.source), None


def ceil_div(a: int, b: int) -> int:
    """Of positive numbers, rounded up; in a form of which a tracer with symbols for sizes can simplify chains."""
    return (a - 1) // b + 1


@cached_by_shape
def windows_of(batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> Windows:
    """The windows of a batch of (height, width) maps, shifted cyclically by `shift` after padding right and bottom.

    Arithmetic on coordinates alone, no sorting: some compilers of exported graphs sort no more than a few thousand
    numbers. While a graph for any size is traced, sizes are symbols: then nothing depends on what they are.
    """
    is_free = any(isinstance(number, torch.SymInt) for number in (batch, height, width))
    rows, columns = ceil_div(height, window), ceil_div(width, window)  # windows down and across
    padded_height, padded_width = rows * window, columns * window
    padded = is_free or (padded_height, padded_width) != (height, width)
    every = rows * columns
    is_split = bool(shift) and not is_free and rows > 1 and columns > 1  # windows with a mask stand behind the others
    plain = (rows - 1) * (columns - 1) if is_split else 0 if shift else every
    mask = None
    if shift:
        # After the shift, three bands per axis come from places that were never neighbours.
        band_y, band_x = _bands(padded_height, window, shift, device), _bands(padded_width, window, shift, device)
        regions_HW = band_y[:, None] * 3 + band_x
        regions_WT = _in_order(_cut(regions_HW, rows, columns, window), is_split)[plain:]
        differ = regions_WT[:, None, :, None] != regions_WT[:, None, None, :]
        mask = (differ.float() * -100.0).repeat(batch, 1, 1, 1)
    stride = height * width + padded
    pictures = torch.arange(batch, device=device)[:, None, None]

    # Which token stands at each place: window by window, back through the shift.
    y = torch.arange(padded_height, device=device).roll(-shift)[:, None]
    x = torch.arange(padded_width, device=device).roll(-shift)
    tokens_HW = torch.where((y < height) & (x < width), y * width + x, height * width)
    tokens_WT = _in_order(_cut(tokens_HW, rows, columns, window), is_split)
    all_WT = [(pictures * stride + part).flatten() for part in (tokens_WT[:plain], tokens_WT[plain:])]

    # And at which place each token stands: through the shift, into its window.
    y = torch.arange(padded_height, device=device).roll(shift)[:, None]
    x = torch.arange(padded_width, device=device).roll(shift)
    numbers_HW = _number(y // window, x // window, rows, columns, is_split)
    before = torch.where(numbers_HW < plain, pictures * plain, (batch - 1) * plain + pictures * (every - plain))
    places_BHW = (before + numbers_HW) * window**2 + y % window * window + x % window
    target = places_BHW[:, :height, :width].flatten()
    pads = None
    if padded:
        parts = (places_BHW[:, height:], places_BHW[:, :height, width:])
        pads = torch.cat([part.flatten(1) for part in parts], dim=1).sort(dim=1).values
    return Windows(torch.cat(all_WT), target, pads, plain * batch, mask, padded)


def _cut(map_HW: Tensor, rows: int, columns: int, window: int) -> Tensor:
    """A padded map in windows, (rows, columns, T)."""
    return map_HW.view(rows, window, columns, window).transpose(1, 2).flatten(2)


def _in_order(windows_RCT: Tensor, is_split: bool) -> Tensor:
    """(W, T): windows row by row; or first those that no shift has cut, then those of the last column and row."""
    if not is_split:
        return windows_RCT.flatten(0, 1)
    return torch.cat([windows_RCT[:-1, :-1].flatten(0, 1), windows_RCT[:-1, -1], windows_RCT[-1]])


def _number(row: Tensor, column: Tensor, rows: int, columns: int, is_split: bool) -> Tensor:
    """The number of a window in the order of `_in_order`."""
    if not is_split:
        return row * columns + column
    above = row < rows - 1
    cut = (rows - 1) * (columns - 1) + torch.where(above, row, rows - 1 + column)
    return torch.where(above & (column < columns - 1), row * (columns - 1) + column, cut)


def _bands(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    places = torch.arange(size, device=device)
    return (places >= size - window).long() + (places >= size - shift).long()


@cached_by_shape
def relative_index(window: int, device: torch.device) -> Tensor:
    """(T·T,) row of the bias table for each (query, key) pair of a window: (dy + w-1)·(2w-1) + dx + w-1."""
    y, x = torch.meshgrid(torch.arange(window, device=device), torch.arange(window, device=device), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return ((dy + window - 1) * (2 * window - 1) + dx + window - 1).flatten()


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
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
            attended_RC = self._attended_in_pieces(tokens_RC, windows, bias)
        return self.proj(windows.scatter(attended_RC).view_as(x_BSC), residual=residual)

    def _attended_in_pieces(self, tokens_RC: Tensor, windows: Windows, bias: Tensor) -> Tensor:
        step, tokens = self._windows_at_once(tokens_RC, len(windows.source)), self.window**2
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

    def _windows_at_once(self, tokens_RC: Tensor, places: int) -> int | None:
        """How many windows to project and attend in together; None: all, each token projected once.

        In prediction on a CPU the projections of a large map are the largest tensors of the backbone; beyond 32 MiB the
        C library asks the system for new pages each time. In pieces padding is projected too, a few percent of a
        large map. Measured at 512 x 1024, the whole backbone: 0.71 against 0.77 s in fp32, 0.38 against 0.43 s in bf16.
        """
        C = tokens_RC.shape[-1]
        if tokens_RC.device.type != "cpu":
            return None
        window = in_fp32(3 * C * self.window**2, tokens_RC)
        return max(1, PIECE // window) if in_fp32(3 * C * places, tokens_RC) > 2 * PIECE else None

    def _attended(
        self, qkv_RC: Tensor, windows: Windows, first: int, bias: Tensor, out_RC: Tensor | None = None
    ) -> Tensor:
        """(W·T, C): attention in the windows from number `first` on. out_RC: where to write; without gradients."""
        tokens = self.window**2
        channels = qkv_RC.shape[1] // 3 // self.num_heads
        q, k, v = qkv_RC.view(-1, tokens, 3, self.num_heads, channels).permute(2, 0, 3, 1, 4)
        out = None if out_RC is None else out_RC.view(-1, tokens, self.num_heads, channels)
        plain = max(0, windows.plain - first)  # of these windows
        if windows.mask is None or plain >= len(q):
            return _attend(q, k, v, bias, out)
        mask = windows.mask
        if out_RC is not None:  # maybe of some windows only; a tracer would fix the length of what is cut out
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
    """(W·T, C): attention in each window, tokens in window order."""
    attended_WATD = attention(q_WATD, k_WATD, v_WATD, bias, out_BQAD=out_WTAD)
    return attended_WATD.transpose(1, 2).flatten(2).flatten(0, 1)


class Block(nn.Module):
    """Pre-norm transformer block: window attention, then an MLP with exact GELU."""

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
        return in_pieces(lambda x: self.mlp(x, residual=x), self.fc1.out_features, x_BSC)

    def mlp(self, x_BSC: Tensor, residual: Tensor | None = None) -> Tensor:
        return feed_forward(self.norm2(x_BSC), self.fc1, self.fc2, "gelu", residual)


class PatchMerging(nn.Module):
    """Halve height and width: four neighbours become one token of twice the channels."""

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
    """4x4 pixels become one token, then LayerNorm. Pictures are padded right and bottom to a multiple of 4."""

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
    def __init__(self, dim: int, drop_path_rates: Sequence[float], num_heads: int, window: int, merge: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window, shift=window // 2 if j % 2 else 0, drop_path_rate=rate)
            for j, rate in enumerate(drop_path_rates)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x_BSC: Tensor, height: int, width: int) -> Tensor:
        """All blocks; what makes it smaller comes after the stage's norm."""
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
        embed_dim, depths, num_heads, window_size: what makes it T, S, B or L
            (docs/methods/published-behaviour.md#swin).
        drop_path: stochastic depth of the last block; it rises linearly from 0 over all blocks. 0.3 in every recipe.
        pretrained: where the ImageNet weights come from; read by training only.
    """

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

"""The windows of Swin as index arithmetic.

Windows are gathered by index instead of being padded, rolled and cut. So only real tokens pass through the projections,
and only the windows that touch a shifted border get a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...ops.cache import cached_by_shape


class Windows(NamedTuple):
    """Assignment of the tokens of a batch of feature maps to windows. T = window², W = windows of the whole batch.

    Attributes:
        source: (W·T,), the token at each position of each window. Tokens are numbered over the batch. If `padded`,
            each image has one more token (number S) that stands for all padding.
        target: (B·S,), the position of each token.
        pads: (B, positions), the positions of padding, if `padded`.
        plain: the number of windows that need no mask; they come first.
        mask: (W - plain, 1, T, T), added to the attention logits of the other windows: 0, or -100 between regions.
        padded: True if any window has padding.
    """

    source: Tensor
    target: Tensor
    pads: Tensor | None
    plain: int
    mask: Tensor | None
    padded: bool

    def gather(self, x_RC: Tensor) -> Tensor:
        """Bring tokens, (B·(S + padded), C), into window order, (W·T, C)."""
        return _Gather.apply(x_RC, self) if x_RC.requires_grad else x_RC.index_select(0, self.source)

    def scatter(self, x_RC: Tensor) -> Tensor:
        """Put tokens in window order, (W·T, C), back into image order, (B·S, C), without padding."""
        return _Scatter.apply(x_RC, self) if x_RC.requires_grad else x_RC.index_select(0, self.target)

    def with_padding(self, x_RC: Tensor, padding_BC: Tensor) -> Tensor:
        """Add one padding token per image to tokens (B·S, C): (B·(S + 1), C)."""
        x_BSC = x_RC.unflatten(0, (len(padding_BC), -1))
        return torch.cat([x_BSC, padding_BC[:, None]], dim=1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """`Windows.gather` with the inverse indexing as its gradient.

    PyTorch's own gradient adds up that of the padding in an order that depends on threads, so two equal runs would
    differ in the last digit.
    """

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
    """`Windows.scatter` with the inverse indexing as its gradient, which is zero for padding."""

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
    """Divide positive numbers, rounded up, in a form that a tracer with symbolic sizes can simplify."""
    return (a - 1) // b + 1


@cached_by_shape
def windows_of(batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> Windows:
    """Compute the windows of a batch of maps, shifted cyclically by `shift` after padding right and bottom.

    Coordinates are not sorted, because some compilers of exported graphs sort only a few thousand numbers. While a
    graph for any size is traced, sizes are symbols, and no branch depends on them.
    """
    is_free = any(isinstance(number, torch.SymInt) for number in (batch, height, width))
    rows, columns = ceil_div(height, window), ceil_div(width, window)  # windows down and across
    padded_height, padded_width = rows * window, columns * window
    padded = is_free or (padded_height, padded_width) != (height, width)
    every = rows * columns
    is_split = bool(shift) and not is_free and rows > 1 and columns > 1  # windows with a mask come last
    plain = (rows - 1) * (columns - 1) if is_split else 0 if shift else every
    mask = None
    if shift:
        # After the shift, three bands per axis come from parts of the map that were never neighbours.
        band_y, band_x = _bands(padded_height, window, shift, device), _bands(padded_width, window, shift, device)
        regions_HW = band_y[:, None] * 3 + band_x
        regions_WT = _in_order(_cut(regions_HW, rows, columns, window), is_split)[plain:]
        differ = regions_WT[:, None, :, None] != regions_WT[:, None, None, :]
        mask = (differ.float() * -100.0).repeat(batch, 1, 1, 1)
    stride = height * width + padded
    images = torch.arange(batch, device=device)[:, None, None]

    # The token at each position: window by window, back through the shift.
    y = torch.arange(padded_height, device=device).roll(-shift)[:, None]
    x = torch.arange(padded_width, device=device).roll(-shift)
    tokens_HW = torch.where((y < height) & (x < width), y * width + x, height * width)
    tokens_WT = _in_order(_cut(tokens_HW, rows, columns, window), is_split)
    all_WT = [(images * stride + part).flatten() for part in (tokens_WT[:plain], tokens_WT[plain:])]

    # The position of each token: through the shift, into its window.
    y = torch.arange(padded_height, device=device).roll(shift)[:, None]
    x = torch.arange(padded_width, device=device).roll(shift)
    numbers_HW = _number(y // window, x // window, rows, columns, is_split)
    before = torch.where(numbers_HW < plain, images * plain, (batch - 1) * plain + images * (every - plain))
    positions_BHW = (before + numbers_HW) * window**2 + y % window * window + x % window
    target = positions_BHW[:, :height, :width].flatten()
    pads = None
    if padded:
        parts = (positions_BHW[:, height:], positions_BHW[:, :height, width:])
        pads = torch.cat([part.flatten(1) for part in parts], dim=1).sort(dim=1).values
    return Windows(torch.cat(all_WT), target, pads, plain * batch, mask, padded)


def _cut(map_HW: Tensor, rows: int, columns: int, window: int) -> Tensor:
    """Cut a padded map into windows, (rows, columns, T)."""
    return map_HW.view(rows, window, columns, window).transpose(1, 2).flatten(2)


def _in_order(windows_RCT: Tensor, is_split: bool) -> Tensor:
    """List windows row by row, (W, T); if split, those of the last column and row come last."""
    if not is_split:
        return windows_RCT.flatten(0, 1)
    return torch.cat([windows_RCT[:-1, :-1].flatten(0, 1), windows_RCT[:-1, -1], windows_RCT[-1]])


def _number(row: Tensor, column: Tensor, rows: int, columns: int, is_split: bool) -> Tensor:
    """Return the index of a window in the order of `_in_order`."""
    if not is_split:
        return row * columns + column
    above = row < rows - 1
    cut = (rows - 1) * (columns - 1) + torch.where(above, row, rows - 1 + column)
    return torch.where(above & (column < columns - 1), row * (columns - 1) + column, cut)


def _bands(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    positions = torch.arange(size, device=device)
    return (positions >= size - window).long() + (positions >= size - shift).long()


@cached_by_shape
def relative_index(window: int, device: torch.device) -> Tensor:
    """Return the row of the bias table for each (query, key) pair of a window, (T·T,): (dy + w-1)·(2w-1) + dx + w-1."""
    y, x = torch.meshgrid(torch.arange(window, device=device), torch.arange(window, device=device), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return ((dy + window - 1) * (2 * window - 1) + dx + window - 1).flatten()

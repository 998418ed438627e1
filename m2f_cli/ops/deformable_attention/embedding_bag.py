"""Deformable attention as weighted sums of rows of a table, for CPUs.

A bilinear sample is four rows of the value table with four weights, and `embedding_bag` sums weighted rows. Rows are
clamped, so that they always exist. The weight max(0, 1 - |distance|) is zero outside the level, so no mask is needed.

PyTorch's own gradient of `embedding_bag` sorts all entries and scatters them. Here scipy transposes the bags by
counting. Then the gradient of the table is a weighted sum of rows, too, and the gradient of the weights is a product
that is computed where the bags have entries.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cache import cached_by_shape
from ..compiled import CompilableOp
from ..dispatch import is_tracing

# --- weighted bags ----------------------------------------------------------------------------------------------------


def weighted_bags(table_RD: Tensor, rows_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the sum over k of weights[n, k] * table[rows[n, k]], (N, D), with gradients for table and weights.

    Args:
        rows_NK: int32 or int64; a row may be in a bag more than once.
    """
    if torch.is_grad_enabled() and has_own_gradients(table_RD, len(table_RD), rows_NK.shape[1]):
        return _WeightedBags.apply(table_RD, rows_NK, weights_NK)
    return F.embedding_bag(rows_NK, table_RD, mode="sum", per_sample_weights=weights_NK)


def has_own_gradients(table: Tensor, rows: int, bag: int) -> bool:
    """Return True if the gradients below work for a table of `rows` rows and bags of `bag` entries.

    They are for fp32 on a CPU while nothing is traced. `sampled_addmm` refuses more entries than a matrix has cells.
    """
    plain = table.device.type == "cpu" and table.dtype == torch.float32 and not torch.compiler.is_compiling()
    return plain and bag <= rows


class _WeightedBags(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_RD: Tensor, rows_NK: Tensor, weights_NK: Tensor) -> Tensor:
        ctx.save_for_backward(table_RD, rows_NK, weights_NK)
        return F.embedding_bag(rows_NK, table_RD, mode="sum", per_sample_weights=weights_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND: Tensor):
        table_RD, rows_NK, weights_NK = ctx.saved_tensors
        for_table, _, for_weights = ctx.needs_input_grad
        grad_ND = grad_ND.contiguous()
        return (
            table_gradient(grad_ND, rows_NK, weights_NK, len(table_RD)) if for_table else None,
            None,
            weights_gradient(grad_ND, rows_NK, table_RD) if for_weights else None,
        )


def table_gradient(grad_ND: Tensor, rows_NK: Tensor, weights_NK: Tensor, count: int) -> Tensor:
    """Return the gradient of a table of `count` rows, (count, D), from the bags that each row is in."""
    N, K = rows_NK.shape
    ends = np.arange(0, N * K + 1, K, dtype=np.int32 if rows_NK.dtype == torch.int32 else np.int64)
    bags = csr_array((weights_NK.numpy().ravel(), rows_NK.numpy().ravel(), ends), shape=(N, count)).tocsc()
    index, starts, weights = (torch.from_numpy(part) for part in (bags.indices, bags.indptr[:-1], bags.data))
    return F.embedding_bag(index, grad_ND, starts, mode="sum", per_sample_weights=weights)


def weights_gradient(grad_ND: Tensor, rows_NK: Tensor, table_RD: Tensor) -> Tensor:
    """Return the gradient of the weights, (N, K): the product of the gradient of each bag with each of its rows."""
    N, K = rows_NK.shape
    ends = torch.arange(0, N * K + 1, K, dtype=rows_NK.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        entries = torch.sparse_csr_tensor(
            ends, rows_NK.view(-1), grad_ND.new_zeros(N * K), (N, len(table_RD)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(entries, grad_ND, table_RD.T, beta=0.0).values().view(N, K)


# --- the corners of each sample ---------------------------------------------------------------------------------------


class LevelConstants(NamedTuple):
    """Constants of the level of each sample, shaped (A·L·P,): one long inner row vectorises best.

    Attributes:
        last_x: the last column that has a right neighbour.
        last_y: the last row of the level that has a lower neighbour.
        width: of the level.
        start: the row of the value table where the level begins.
        corners: (4, A·L·P), steps from the upper left corner to all four.
        one_wide: True where a level has a single column; None if none has.
        one_high: True where a level has a single row; None if none has.
    """

    last_x: Tensor
    last_y: Tensor
    width: Tensor
    start: Tensor
    corners: Tensor
    one_wide: Tensor | None
    one_high: Tensor | None


@cached_by_shape
def _level_constants(
    shapes: tuple[tuple[int, int], ...], heads: int, points: int, device: torch.device
) -> LevelConstants:
    height, width = torch.tensor(shapes, device=device).T
    start = (height * width).cumsum(0) - height * width
    right, down = (width > 1).long(), (height > 1).long() * width
    corners = torch.stack([torch.zeros_like(right), right, down, right + down])

    def per_sample(of_levels: Tensor) -> Tensor:
        return of_levels.repeat_interleave(points, -1).repeat(*[1] * (of_levels.dim() - 1), heads)

    return LevelConstants(
        last_x=per_sample((width - 2).clamp(min=0).float()),
        last_y=per_sample((height - 2).clamp(min=0).float()),
        width=per_sample(width.float()),
        start=per_sample(start.int()),
        corners=per_sample(corners.int()),
        one_wide=per_sample(width == 1) if any(w == 1 for _, w in shapes) else None,
        one_high=per_sample(height == 1) if any(h == 1 for h, _ in shapes) else None,
    )


class _Hat(torch.autograd.Function):
    """max(0, 1 - |t|), the bilinear weight at a distance of t pixels.

    The slope at a kink is that from the right, as in `grid_sample`. Training starts at kinks, because initial offsets
    are whole numbers; plain autograd would give a slope of zero there.
    """

    @staticmethod
    def forward(ctx, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        return (1 - t.abs()).relu_()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * _hat_slope(ctx.saved_tensors[0])


def _hat_slope(t: Tensor) -> Tensor:
    return (t >= -1).to(t.dtype) - 2 * (t >= 0) + (t >= 1)


def _hat(t: Tensor) -> Tensor:
    return _Hat.apply(t) if t.requires_grad else (1 - t.abs()).relu_()


def _neighbours(x: Tensor, last: Tensor, one_wide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left of two neighbouring columns, which always exists, and the weights of both.

    Outside the level both columns are more than a pixel away, so their weights are zero.
    """
    left = torch.minimum(x.detach().floor().clamp_(min=0), last)
    t = x - left
    w_left, w_right = _hat(t), _hat(t - 1)
    return left, w_left, w_right if one_wide is None else w_right * ~one_wide


def _corners(level: LevelConstants, starts: Tensor, x_BNALP, y_BNALP, weights_BNALP):
    """Return rows of the value table (int32) and weights of the corners of each sample, both (B, N, A, 4, L·P)."""
    x, y, weights = (t.flatten(2) for t in (x_BNALP, y_BNALP, weights_BNALP))
    left, *columns = _neighbours(x, level.last_x, level.one_wide)
    top, *lines = _neighbours(y, level.last_y, level.one_high)
    heads = (starts.shape[2], -1)
    rows = (top * level.width).add_(left).to(torch.int32) + level.start  # not in place: torch 2.6 could not export it
    rows = rows.unflatten(2, heads) * heads[0] + starts
    steps = (level.corners * heads[0]).unflatten(1, heads)
    lines = [line * weights for line in lines]
    corner_weights = [(line * column).unflatten(2, heads) for line in lines for column in columns]
    return torch.stack([rows + step for step in steps], dim=3), torch.stack(corner_weights, dim=3)


corners_on_cpu = CompilableOp(_corners)  # without gradients


# --- the sampling -----------------------------------------------------------------------------------------------------


def sample(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    """See `deform_attn`."""
    inputs = (value_BSAD, x_BNALP, y_BNALP, weights_BNALP)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    rows, bag = value_BSAD.shape[:3].numel(), 4 * x_BNALP.shape[3:].numel()
    if needs_gradient and has_own_gradients(value_BSAD, rows, bag):
        return _Sampling.apply(*inputs, shapes)
    table, rows, weights = table_and_bags(*inputs, shapes)
    bags = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    return bags.view(*x_BNALP.shape[:2], value_BSAD.shape[2:].numel())


def table_and_bags(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sampling as weighted sums of rows: the table (B·S·A, D), rows and weights (B·N·A, 4·L·P)."""
    B, S, A, D = value_BSAD.shape
    L, P = x_BNALP.shape[3:]
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x_BNALP, y_BNALP, weights_BNALP))
    find_corners = _corners if needs_gradient or is_tracing() or value_BSAD.device.type != "cpu" else corners_on_cpu
    level = _level_constants(shapes, A, P, value_BSAD.device)
    starts = _table_starts(B, S, A, L * P, value_BSAD.device)
    rows, weights = find_corners(level, starts, x_BNALP, y_BNALP, weights_BNALP)
    return value_BSAD.reshape(-1, D), rows.view(-1, 4 * L * P), weights.view(-1, 4 * L * P)


class _Sampling(torch.autograd.Function):
    """The sampling with its gradient written out.

    Only the inputs are kept. Rows and weights of the corners need much more memory, and are computed again.
    """

    @staticmethod
    def forward(ctx, value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes):
        ctx.save_for_backward(value_BSAD, x_BNALP, y_BNALP, weights_BNALP)
        ctx.shapes = shapes
        table, rows, weights = table_and_bags(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes)
        bags = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
        return bags.view(*x_BNALP.shape[:2], value_BSAD.shape[2:].numel())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BNC):
        value_BSAD, x_BNALP, y_BNALP, weights_BNALP = ctx.saved_tensors
        table, rows, weights = table_and_bags(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, ctx.shapes)
        grad_bags = grad_BNC.reshape(len(rows), -1).contiguous()
        grad_value = table_gradient(grad_bags, rows, weights, len(table)).view_as(value_BSAD)
        grad_corners = weights_gradient(grad_bags, rows, table).view(*x_BNALP.shape[:3], 4, *x_BNALP.shape[3:])
        level = _level_constants(ctx.shapes, *x_BNALP.shape[2:5:2], x_BNALP.device)
        A_LP = x_BNALP.shape[2:]
        (wx0, wx1), slopes_x = _hats(x_BNALP.flatten(2), level.last_x, level.one_wide, A_LP)
        (wy0, wy1), slopes_y = _hats(y_BNALP.flatten(2), level.last_y, level.one_high, A_LP)
        g00, g01, g10, g11 = grad_corners.unbind(3)  # upper left, upper right, lower left, lower right
        upper, lower = g00 * wx0 + g01 * wx1, g10 * wx0 + g11 * wx1
        grad_weights = upper * wy0 + lower * wy1
        grad_y = weights_BNALP * (upper * slopes_y[0] + lower * slopes_y[1])
        left, right = g00 * wy0 + g10 * wy1, g01 * wy0 + g11 * wy1
        grad_x = weights_BNALP * (left * slopes_x[0] + right * slopes_x[1])
        return grad_value, grad_x, grad_y, grad_weights, None


def _hats(x: Tensor, last: Tensor, one_wide: Tensor | None, shape: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights of `_neighbours` and their slopes, with the last dimension in this shape."""
    left, w_left, w_right = _neighbours(x, last, one_wide)
    slope_left, slope_right = _hat_slope(x - left), _hat_slope(x - left - 1)
    if one_wide is not None:
        slope_right = slope_right * ~one_wide
    weights, slopes = (w_left, w_right), (slope_left, slope_right)
    return [t.unflatten(2, shape) for t in weights], [t.unflatten(2, shape) for t in slopes]


@cached_by_shape
def _table_starts(B: int, S: int, A: int, samples: int, device: torch.device) -> Tensor:
    """Return the row of the table where image b and head a begin, (B, 1, A, samples), repeated for each sample."""
    images = torch.arange(B, dtype=torch.int32, device=device).view(B, 1, 1, 1) * (S * A)
    heads = torch.arange(A, dtype=torch.int32, device=device).view(1, 1, A, 1)
    return (images + heads).repeat(1, 1, 1, samples)

"""Multi-scale deformable attention: a weighted sum of bilinear samples (Deformable DETR, eq. 3).

One function, `deform_attn`, and four ways to compute it that agree to rounding, forward and backward:

* "reference": `grid_sample`, one level after the other. Readable; the one that others are compared with.
* "bag": each sample is four rows of a table with four weights, and summing weighted rows is what
  `torch.nn.functional.embedding_bag` does: 20 to 35 times faster than `grid_sample` on a CPU.
* "gather": the same four rows by indexing. For export: a known inference compiler fuses `GridSample` around this
  operator into wrong numbers.
* "triton": one kernel each way, for GPUs; see `deform_attn_triton`.

`M2F_DEFORM_ATTN` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import MissingDependency
from ..bags import has_own_gradients, table_gradient, weights_gradient
from ..cache import cached_by_shape
from ..compiled import Compilable
from ..cpu.chunking import is_tracing
from ..dispatch import Ways

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first is new in torch 2.7
IMPLEMENTATIONS = ("reference", "bag", "gather")  # those that run on every device
KNOWN = (*IMPLEMENTATIONS, "triton")  # see `implementations`
WAYS = Ways("deformable attention", "M2F_DEFORM_ATTN", KNOWN)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def implementations(device: torch.device) -> tuple[str, ...]:
    """Those that run on a device."""
    return KNOWN if _runs_triton(device) else IMPLEMENTATIONS


def _runs_triton(device: torch.device) -> bool:
    """Triton compiles for Volta (7.0) and later."""
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 7


def choose(device: torch.device) -> str:
    """The implementation that `deform_attn` uses on a device when nobody says otherwise."""
    override = WAYS.override()
    if override is not None:
        return override
    if _is_exporting():
        return "gather"
    if device.type == "cpu":
        return "bag"
    return "triton" if _runs_triton(device) else "reference"


def deform_attn(
    value_BSAD: Tensor,
    shapes: Sequence[tuple[int, int]],
    x_BNALP: Tensor,
    y_BNALP: Tensor,
    weights_BNALP: Tensor,
    *,
    impl: str | None = None,
) -> Tensor:
    """Sample every level at the given points and sum with the given weights.

    Args:
        value_BSAD: the table of values, all levels one after the other, row-major; D channels per head A.
        shapes: (height, width) of each level; their areas sum to S.
        x_BNALP, y_BNALP: where to sample, in pixels of the level: 0 is the centre of the first pixel. Outside the
            level the value is zero, as in `grid_sample(padding_mode="zeros", align_corners=False)`.
        weights_BNALP: the weight of each sample.
        impl: "reference", "bag", "gather" or "triton"; None for the best on this device.

    Returns:
        (B, N, A·D), heads concatenated.

    Raises:
        MissingDependency, ConfigError: "triton" was asked for and is not installed, or the tensors are on a CPU.
    """
    ways = {"reference": _reference, "bag": _bag, "gather": _gather, "triton": _triton}
    call = ways[WAYS.checked(impl or choose(value_BSAD.device))]
    return call(value_BSAD, tuple(map(tuple, shapes)), x_BNALP, y_BNALP, weights_BNALP)


def _reference(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    B, _, A, D = value_BSAD.shape
    N, P = x_BNALP.shape[1], x_BNALP.shape[-1]
    per_level = value_BSAD.split([h * w for h, w in shapes], dim=1)
    samples = []
    for level, (h, w) in enumerate(shapes):
        image = per_level[level].permute(0, 2, 3, 1).reshape(B * A, D, h, w)
        x = 2 * (x_BNALP[:, :, :, level] + 0.5) / w - 1
        y = 2 * (y_BNALP[:, :, :, level] + 0.5) / h - 1
        grid = torch.stack([x, y], -1).transpose(1, 2).reshape(B * A, N, P, 2)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    samples_LP = torch.stack(samples, dim=-2).flatten(-2)  # (B·A, D, N, L·P)
    weights = weights_BNALP.transpose(1, 2).reshape(B * A, 1, N, len(shapes) * P)
    return (samples_LP * weights).sum(-1).reshape(B, A * D, N).transpose(1, 2)


class LevelConstants(NamedTuple):
    """What the sampling needs to know of the level of each sample, shaped (A·L·P,), the same for all heads: one long
    inner row makes broadcasting vectorise."""

    last_x: Tensor  # the last column that has a right neighbour
    last_y: Tensor
    width: Tensor
    start: Tensor  # row of the value table where the level begins
    corners: Tensor  # (4, A·L·P): steps from the upper left corner to all four
    one_wide: Tensor | None  # where a level has no second column; None when all have
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
    """max(0, 1 - |t|): the bilinear weight at a distance of t pixels, and zero from one pixel on.

    Its slope is taken from the right, as `grid_sample` does. Freshly initialised offsets are whole numbers, so the
    kinks are where training starts: plain autograd would give a slope of zero there.
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
    """The left of two neighbouring columns (always a valid one) and the weights of both.

    Outside the level both columns are more than a pixel away, so their weights are zero and no mask is needed.
    """
    left = torch.minimum(x.detach().floor().clamp_(min=0), last)
    t = x - left
    w_left, w_right = _hat(t), _hat(t - 1)
    return left, w_left, w_right if one_wide is None else w_right * ~one_wide


def _upper_left(level: LevelConstants, x_BNALP, y_BNALP, weights_BNALP):
    """Of each sample, all (B, N, A·L·P): the row of its level's table (int32, within one picture and head) where its
    upper left corner lies, the weights of the left and right column, and those of the upper and lower row, which have
    the sample's own weight in them."""
    x, y, weights = (t.flatten(2) for t in (x_BNALP, y_BNALP, weights_BNALP))
    left, wx0, wx1 = _neighbours(x, level.last_x, level.one_wide)
    top, wy0, wy1 = _neighbours(y, level.last_y, level.one_high)
    rows = (top * level.width).add_(left).to(torch.int32) + level.start  # not in place: torch 2.6 could not export it
    return rows, (wx0, wx1), (wy0 * weights, wy1 * weights)


def _corners(level: LevelConstants, starts: Tensor, x_BNALP, y_BNALP, weights_BNALP):
    """Rows of the value table (int32) and weights of the four corners of each sample, both (B, N, A, 4, L·P)."""
    rows, columns, lines = _upper_left(level, x_BNALP, y_BNALP, weights_BNALP)
    heads = (starts.shape[2], -1)
    rows = rows.unflatten(2, heads) * heads[0] + starts
    steps = (level.corners * heads[0]).unflatten(1, heads)
    weights = [(line * column).unflatten(2, heads) for line in lines for column in columns]
    return torch.stack([rows + step for step in steps], dim=3), torch.stack(weights, dim=3)


def _corners_in_place(level: LevelConstants, starts: Tensor, x_BNALP, y_BNALP, weights_BNALP):
    """`_corners` in fewer passes, each number written once, where it belongs; without gradients."""
    x, y, weights = (t.flatten(2) for t in (x_BNALP, y_BNALP, weights_BNALP))
    heads = (starts.shape[2], -1)
    left, *columns = _distances(x, level.last_x, level.one_wide)
    top, *lines = _distances(y, level.last_y, level.one_high)
    rows = torch.addcmul(left, top, level.width).to(torch.int32)
    rows = rows.mul_(heads[0]).add_(level.start * heads[0] + starts.flatten(2)).unflatten(2, heads)
    steps = (level.corners * heads[0]).unflatten(1, heads)
    columns = [distance.unflatten(2, heads) for distance in columns]
    lines = [torch.addcmul(weights, weights, distance, value=-1).unflatten(2, heads) for distance in lines]
    shape = (*rows.shape[:3], 4, rows.shape[3])
    all_rows, all_weights = rows.new_empty(shape), weights.new_empty(shape)
    for corner, step in enumerate(steps):
        line, column = lines[corner // 2], columns[corner % 2]
        torch.add(rows, step, out=all_rows[:, :, :, corner])
        torch.addcmul(line, line, column, value=-1, out=all_weights[:, :, :, corner])
    return all_rows, all_weights


def _distances(x: Tensor, last: Tensor, one_wide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `_neighbours`, with one minus each weight: the distance in pixels, at most 1."""
    left = torch.clamp(x, torch.zeros_like(last), last).floor_()
    beside = x - left
    to_left = beside.abs().clamp_(max=1)
    to_right = beside.sub_(1).abs_().clamp_(max=1)
    return left, to_left, to_right if one_wide is None else to_right.masked_fill_(one_wide, 1)


corners = Compilable(_corners_in_place, _corners)  # on a CPU, without gradients


def _bag(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    inputs = (value_BSAD, x_BNALP, y_BNALP, weights_BNALP)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    rows, bag = value_BSAD.shape[:3].numel(), 4 * x_BNALP.shape[3:].numel()
    if wanted and has_own_gradients(value_BSAD, rows, bag):
        return _Bag.apply(*inputs, shapes)
    table, rows, weights = _table_of(*inputs, shapes)
    bags = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    return bags.view(*x_BNALP.shape[:2], -1)


def _table_of(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes) -> tuple[Tensor, Tensor, Tensor]:
    """The sampling as weighted sums of rows: the table (B·S·A, D), rows and weights (B·N·A, 4·L·P)."""
    B, S, A, D = value_BSAD.shape
    L, P = x_BNALP.shape[3:]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x_BNALP, y_BNALP, weights_BNALP))
    make = _corners if wanted or is_tracing() or value_BSAD.device.type != "cpu" else corners
    level = _level_constants(shapes, A, P, value_BSAD.device)
    starts = _table_starts(B, S, A, L * P, value_BSAD.device)
    rows, weights = make(level, starts, x_BNALP, y_BNALP, weights_BNALP)
    return value_BSAD.reshape(-1, D), rows.view(-1, 4 * L * P), weights.view(-1, 4 * L * P)


class _Bag(torch.autograd.Function):
    """Keeps the four inputs and nothing of what is made of them (a tenth of the memory): rows and weights of the
    corners are made again for the gradient, which is written out."""

    @staticmethod
    def forward(ctx, value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes):
        ctx.save_for_backward(value_BSAD, x_BNALP, y_BNALP, weights_BNALP)
        ctx.shapes = shapes
        table, rows, weights = _table_of(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes)
        bags = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
        return bags.view(*x_BNALP.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BNC):
        value_BSAD, x_BNALP, y_BNALP, weights_BNALP = ctx.saved_tensors
        table, rows, weights = _table_of(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, ctx.shapes)
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
    """Weights of both neighbours of `_neighbours`, and their slopes; the last dimension in this shape."""
    left, w_left, w_right = _neighbours(x, last, one_wide)
    slope_left, slope_right = _hat_slope(x - left), _hat_slope(x - left - 1)
    if one_wide is not None:
        slope_right = slope_right * ~one_wide
    weights, slopes = (w_left, w_right), (slope_left, slope_right)
    return [t.unflatten(2, shape) for t in weights], [t.unflatten(2, shape) for t in slopes]


@cached_by_shape
def _table_starts(B: int, S: int, A: int, samples: int, device: torch.device) -> Tensor:
    """Row of the table (B·S·A rows) where picture b and head a begin, (B, 1, A, samples): repeated for each sample."""
    pictures = torch.arange(B, dtype=torch.int32, device=device).view(B, 1, 1, 1) * (S * A)
    heads = torch.arange(A, dtype=torch.int32, device=device).view(1, 1, A, 1)
    return (pictures + heads).repeat(1, 1, 1, samples)


def _gather(value_BSAD, shapes, x_BNALP, y_BNALP, weights_BNALP):
    """Whole rows of the table at a time, then small matrix products: what engines of exported graphs are quick at.
    (Gathering numbers one by one took onnxruntime and OpenVINO four times as long.)"""
    B, N, A = x_BNALP.shape[:3]
    table, rows, weights = _table_of(value_BSAD, x_BNALP, y_BNALP, weights_BNALP, shapes)
    samples = table.index_select(0, rows.flatten()).unflatten(0, (-1, rows.shape[1]))
    return (weights.unsqueeze(1) @ samples).view(B, N, A * value_BSAD.shape[3])


def _triton(*inputs):
    try:
        from .triton import sampled  # only here: importing Triton takes a second
    except ImportError as error:
        raise MissingDependency("triton", "M2F_DEFORM_ATTN=triton") from error
    return sampled(*inputs)

"""Deformable attention as two Triton kernels, forward and backward, for GPUs: the "triton" of `deform_attn`.

*Experimental*: so far the kernels were compared with the reference in Triton's interpreter only, and never timed.

A row is one head of one query: its points lie together in memory, and so does its result. A program takes a block of
rows and sums their samples in fp32, whatever the inputs are; nothing but the four inputs is kept for the gradient. The
gradient of the table is added up by atomics, as that of `grid_sample` on a GPU is: its last digits change from run to
run.

Importing this needs Triton, which comes with PyTorch's CUDA builds. `TRITON_INTERPRET=1`, set before Triton is first
imported, runs the kernels on a CPU: slow, and how the tests compare them with the reference. Both are operators of
PyTorch ("m2f::deform_attn"), opaque to torch.compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import ConfigError
from ..cache import cached_by_shape

# Elements of a program's block, rows times channels: small enough that registers do not spill.
BLOCK = 256


def sample(
    value_BSAD: Tensor, shapes: Sequence[tuple[int, int]], x_BNALP: Tensor, y_BNALP: Tensor, weights_BNALP: Tensor
) -> Tensor:
    """See `deform_attn`. Value and weights may have a lower precision than the points.

    Returns:
        (B, N, A·D) in the precision of the values.

    Raises:
        ConfigError: the tensors are on a CPU and Triton's interpreter is not on.
    """
    is_compiled = isinstance(_forward_kernel, triton.JITFunction)
    if is_compiled and value_BSAD.device.type == "cpu":
        raise ConfigError(
            "Deformable attention was asked of Triton, which needs a GPU, for tensors on a CPU.",
            hint="Unset M2F_OPS and M2F_DEFORM_ATTN, or choose bag.",
        )
    return operator(value_BSAD, [length for shape in shapes for length in shape], x_BNALP, y_BNALP, weights_BNALP)


# --- operators of PyTorch ---------------------------------------------------------------------------------------------

_INPUTS = "Tensor value_BSAD, SymInt[] sizes, Tensor x_BNALP, Tensor y_BNALP, Tensor weights_BNALP"


@torch.library.custom_op("m2f::deform_attn", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def operator(value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP):
    output_BNC = _like_output(value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP)
    _launch(_forward_kernel, value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP, output_BNC)
    return output_BNC


@operator.register_fake
def _like_output(value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP):
    B, _, A, D = value_BSAD.shape
    return value_BSAD.new_empty(B, x_BNALP.shape[1], A * D)


@torch.library.custom_op(
    "m2f::deform_attn_backward",
    mutates_args=(),
    schema=f"(Tensor grad_BNC, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def operator_backward(grad_BNC, value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP):
    grad_value = torch.zeros(value_BSAD.shape, dtype=torch.float32, device=value_BSAD.device)
    per_sample = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x_BNALP, y_BNALP, weights_BNALP)]
    _launch(
        _backward_kernel,
        value_BSAD,
        sizes,
        x_BNALP,
        y_BNALP,
        weights_BNALP,
        grad_BNC.contiguous(),
        grad_value,
        *per_sample,
    )
    return grad_value.to(value_BSAD.dtype), *per_sample


@operator_backward.register_fake
def _like_inputs(grad_BNC, value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP):
    inputs = (value_BSAD, x_BNALP, y_BNALP, weights_BNALP)
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs)


def _save(ctx, inputs, output):
    value_BSAD, ctx.sizes, *samples = inputs
    ctx.save_for_backward(value_BSAD, *samples)


def _gradients(ctx, grad_BNC):
    value_BSAD, *samples = ctx.saved_tensors
    grad_value, *per_sample = operator_backward(grad_BNC, value_BSAD, ctx.sizes, *samples)
    return grad_value, None, *per_sample


operator.register_autograd(_gradients, setup_context=_save)


def _launch(kernel, value_BSAD, sizes, x_BNALP, y_BNALP, weights_BNALP, *results) -> None:
    B, S, A, D = value_BSAD.shape
    N, L, P = x_BNALP.shape[1], *x_BNALP.shape[3:]
    block_d = triton.next_power_of_2(D)
    block_r = max(1, BLOCK // block_d)
    if not B * N * A:
        return
    inputs = [t.contiguous() for t in (value_BSAD, x_BNALP, y_BNALP, weights_BNALP)]
    with torch.cuda.device_of(value_BSAD):  # Triton launches on the current device
        kernel[(triton.cdiv(B * N * A, block_r),)](
            _levels(tuple(sizes), value_BSAD.device),
            *inputs,
            *results,
            B * N * A,
            S,
            N,
            A,
            D,
            L=L,
            P=P,
            BLOCK_R=block_r,
            BLOCK_D=block_d,
        )


@cached_by_shape
def _levels(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return height and width of each level, and the row of the table where it begins: (L, 3) int32."""
    height, width = torch.tensor(sizes).view(-1, 2).T
    start = (height * width).cumsum(0) - height * width
    return torch.stack([height, width, start], 1).int().to(device)


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _block(rows, S, N, A, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the rows of this program, (R,), offsets of their results and of their heads in the table, (R, D), and
    which of both exist. Offsets have 64 bits, but the divisions do not, which would be slow."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_D)[None, :]
    head = ((row // (N * A)).to(tl.int64) * S * A + row % A) * D
    exists = row < rows
    row = row.to(tl.int64)
    return row, (row * D)[:, None] + channel, head[:, None] + channel, exists, exists[:, None] & (channel < D)


@triton.jit
def _level(levels, level):
    """Return height, width and first row of a level."""
    return tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1), tl.load(levels + 3 * level + 2)


@triton.jit
def _sample(x, y, weights, index, exists):
    """Return coordinates and weight of one sample of each row, (R,) each."""
    px = tl.load(x + index, mask=exists, other=0.0).to(tl.float32)
    py = tl.load(y + index, mask=exists, other=0.0).to(tl.float32)
    return px, py, tl.load(weights + index, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _corner(px, py, height, width, right: tl.constexpr, below: tl.constexpr):
    """Return one of the four pixels around a point: its number within the level, whether it exists, and its bilinear
    weights along x and y (0 where it does not exist)."""
    column, line = tl.floor(px), tl.floor(py)
    share_x = px - column if right else 1 - (px - column)
    share_y = py - line if below else 1 - (py - line)
    column, line = column + right, line + below
    # Compared before the conversion to integers, which cannot hold points far outside.
    has = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    number = tl.where(has, line, 0.0).to(tl.int32) * width + tl.where(has, column, 0.0).to(tl.int32)
    return number, has, tl.where(has, share_x, 0.0), tl.where(has, share_y, 0.0)


@triton.jit
def _forward_kernel(
    levels,
    value,
    x,
    y,
    weights,
    output,
    rows,
    S,
    N,
    A,
    D,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, result, head, exists, cells = _block(rows, S, N, A, D, BLOCK_R, BLOCK_D)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for level in range(L):
        height, width, start = _level(levels, level)
        for point in range(P):
            px, py, weight = _sample(x, y, weights, (row * L + level) * P + point, exists)
            for corner in tl.static_range(4):
                number, has, share_x, share_y = _corner(px, py, height, width, corner % 2, corner // 2)
                offset = head + ((start + number).to(tl.int64) * (A * D))[:, None]
                pixel = tl.load(value + offset, mask=cells & has[:, None], other=0.0).to(tl.float32)
                total += (weight * share_x * share_y)[:, None] * pixel
    tl.store(output + result, total, mask=cells)


@triton.jit
def _backward_kernel(
    levels,
    value,
    x,
    y,
    weights,
    grad,
    grad_value,
    grad_x,
    grad_y,
    grad_weights,
    rows,
    S,
    N,
    A,
    D,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, result, head, exists, cells = _block(rows, S, N, A, D, BLOCK_R, BLOCK_D)
    grads = tl.load(grad + result, mask=cells, other=0.0).to(tl.float32)
    for level in range(L):
        height, width, start = _level(levels, level)
        for point in range(P):
            index = (row * L + level) * P + point
            px, py, weight = _sample(x, y, weights, index, exists)
            for_x = tl.zeros((BLOCK_R,), tl.float32)
            for_y = tl.zeros((BLOCK_R,), tl.float32)
            for_weight = tl.zeros((BLOCK_R,), tl.float32)
            for corner in tl.static_range(4):
                number, has, share_x, share_y = _corner(px, py, height, width, corner % 2, corner // 2)
                offset = head + ((start + number).to(tl.int64) * (A * D))[:, None]
                mask = cells & has[:, None]
                pixel = tl.load(value + offset, mask=mask, other=0.0).to(tl.float32)
                part = (weight * share_x * share_y)[:, None] * grads
                tl.atomic_add(grad_value + offset, part, mask=mask, sem="relaxed")
                product = tl.sum(pixel * grads, axis=1)
                for_x += product * share_y * (2 * (corner % 2) - 1)  # a share's slope: 1 of the right pixel, -1 left
                for_y += product * share_x * (2 * (corner // 2) - 1)
                for_weight += product * share_x * share_y
            tl.store(grad_x + index, weight * for_x, mask=exists)
            tl.store(grad_y + index, weight * for_y, mask=exists)
            tl.store(grad_weights + index, for_weight, mask=exists)

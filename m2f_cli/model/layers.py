"""Small parts that several networks share."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ..ops import winograd
from ..ops.cache import derived, forget
from ..ops.cpu.attention import attention
from ..ops.cpu.conv import conv2d
from ..ops.cpu.feed_forward import feed_forward
from ..ops.cpu.linear import MAX_PACKED, Linear, linear, relu
from ..ops.dispatch import is_exporting, is_tracing
from ..ops.group_norm import group_norm as ops_group_norm


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine numbers are constants (buffers), also in training; eps 1e-5."""

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def pointwise(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """A 1x1 convolution, as a linear layer where channels are innermost already (transformer features): the
    convolution kernels would copy such a map into another layout and back. An exported graph has the convolution: its
    compiler chooses layouts, and for a free size the tracer ponders the linear layer's shapes for minutes."""
    if is_exporting() or not x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return conv(x_BCHW)
    return linear(x_BCHW.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """fp32 inside, also under autocast. Nothing at all without autocast: an exported graph then has no mark of it."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_half(device: torch.device) -> bool:
    """Whether autocast is on and means fp16."""
    kind = device.type
    return kind != "meta" and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same map with channels innermost: what a resize and a convolution of many channels like on a CPU.

    Not `contiguous`: a single map cut out of a sequence of tokens may have any stride along the batch; that passes as
    contiguous there, and as another layout in the resize, which then copies its result twice.
    """
    if is_exporting():
        return x_BCHW
    if x_BCHW.stride(1) != 1:
        return x_BCHW.contiguous(memory_format=torch.channels_last)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    return x_BHWC.flatten(0, 1).unflatten(0, x_BHWC.shape[:2]).permute(0, 3, 1, 2)


def convolved(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """A convolution; where channels of the map are innermost, so are those of the kernel: mixed, it takes 1.8 times
    as long on a CPU. (The parameter itself stays as it is, for checkpoints.)"""
    if is_exporting() or not x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return conv(x_BCHW)
    weight = conv.weight
    if torch.is_grad_enabled():
        forget(conv)
    is_plain = conv.padding == conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    if is_plain and conv.kernel_size == (3, 3) and winograd.choose(x_BCHW, conv.out_channels) == "winograd":
        has_gradient = torch.is_grad_enabled()  # which then goes through the transform, too
        kernel_PCO = None if has_gradient else derived(conv, "winograd", lambda: winograd.transformed(weight), weight)
        return winograd.conv3x3(x_BCHW, weight, conv.bias, kernel_PCO=kernel_PCO, impl="winograd")
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x_BCHW, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNorm(nn.Module):
    """Convolution, then a norm, then (optionally) ReLU. Padding keeps the size at stride 1.

    In prediction a batch norm is part of the convolution: a factor of its weights, and its bias. What is small, or in
    another number format than the parameters, is kept so; the rest is multiplied anew each time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm: Callable[[int], nn.Module],
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        relu: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=bias)
        self.norm = norm(out_channels)
        self.relu = relu

    def forward(self, x_BCHW: Tensor, residual: Tensor | None = None) -> Tensor:
        """
        Args:
            residual: added before the ReLU.
        """
        if torch.is_grad_enabled():
            forget(self)
        elif is_constant(self.norm) and not is_tracing() and x_BCHW.device.type in ("cpu", "cuda"):
            return conv2d(self.conv, x_BCHW, *self._folded(x_BCHW), relu=self.relu, residual=residual)
        is_linear = self.conv.kernel_size == (1, 1) and self.conv.stride == (1, 1)
        y = pointwise(self.conv, x_BCHW) if is_linear else convolved(self.conv, x_BCHW)
        y = self.norm(y, overwrite=True) if isinstance(self.norm, GroupNorm) else self.norm(y)
        if residual is not None:
            return F.relu(y + residual, inplace=True) if self.relu else y + residual
        return relu(y) if self.relu else y

    def _folded(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias with the norm in them, in the number format and layout that an input wants."""
        weight, kind = self.conv.weight, x_BCHW.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        is_innermost = x_BCHW.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_innermost else torch.contiguous_format
        norm, bias = self.norm, () if self.conv.bias is None else (self.conv.bias,)
        sources = (weight, *bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)

        def scale_and_shift() -> Tensor:
            return torch.stack(self._scale_and_shift())

        def scaled() -> Tensor:
            factors_O111 = scale_O[:, None, None, None].to(weight.dtype)
            return torch.mul(weight, factors_O111, out=torch.empty_like(weight, memory_format=layout)).to(dtype)

        scale_O, shift_O = derived(self, "norm", scale_and_shift, sources).unbind()
        is_kept = dtype != weight.dtype or weight.numel() <= MAX_PACKED
        return derived(self, "folded", scaled, sources, dtype, layout) if is_kept else scaled(), shift_O

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What the norm does to each channel, the convolution's own bias included."""
        norm = self.norm
        scale_O = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift_O = norm.bias.double() - norm.running_mean.double() * scale_O
        if self.conv.bias is not None:
            shift_O = shift_O + self.conv.bias.double() * scale_O
        return scale_O.float(), shift_O.float()


def is_constant(norm: nn.Module) -> bool:
    """Whether a norm does the same to every picture: a batch norm outside training."""
    return isinstance(norm, FrozenBatchNorm) or (
        isinstance(norm, nn.BatchNorm2d) and not norm.training and norm.affine and norm.track_running_stats
    )


class GroupNorm(nn.GroupNorm):
    """Group norm that is exact with channels innermost, too; see `ops.group_norm`."""

    def forward(self, x_BCHW: Tensor, overwrite: bool = False) -> Tensor:
        """
        Args:
            overwrite: the result may take the place of the input.
        """
        return ops_group_norm(x_BCHW, self.num_groups, self.weight, self.bias, self.eps, overwrite=overwrite)


def group_norm(channels: int) -> GroupNorm:
    """The group norm of pixel decoders: 32 groups."""
    return GroupNorm(32, channels)


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, linear."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.training and self.dropout:
            return self.linear2(F.dropout(self.linear1(x, "relu"), self.dropout), residual=residual)
        return feed_forward(x, self.linear1, self.linear2, "relu", residual)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, "relu")
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value inputs; one packed input projection (q, k, v rows).

    dropout: of the attention weights, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if type(num_heads) is not int or num_heads < 1 or dim % num_heads:
            raise ValueError(f"{num_heads!r} heads do not divide {dim} channels")
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, may_attend_BQS: Tensor | None = None
    ) -> Tensor:
        """Attend; `may_attend_BQS` is True where a query may look, the same for all heads, or (B, A, Q, S)."""
        [(key_BSC, value_BSC)] = keys_and_values([self], key_BSC, value_BSC)
        return self.attend(query_BQC, key_BSC, value_BSC, may_attend_BQS)

    def attend(
        self, query_BQC: Tensor, key_BSC: Tensor, value_BSC: Tensor, may_attend_BQS: Tensor | None = None
    ) -> Tensor:
        """`forward` for keys and values that are projected already."""
        dim = query_BQC.shape[-1]
        query_BQC = linear(query_BQC, self.in_proj.weight[:dim], self.in_proj.bias[:dim])
        inputs = (query_BQC.to(key_BSC.dtype), key_BSC, value_BSC)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in inputs)
        per_head = may_attend_BQS is None or may_attend_BQS.dim() == 4
        may_attend = may_attend_BQS if per_head else may_attend_BQS.unsqueeze(1)
        attended_BAQD = attention(q, k, v, may_attend=may_attend, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(attended_BAQD.transpose(1, 2).flatten(2).to(query_BQC.dtype))


def keys_and_values(attentions: Sequence[Attention], key_BSC: Tensor, value_BSC: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each of several attentions over the same keys and values makes of them: one product for all of a kind."""
    dim = key_BSC.shape[-1]

    def project(x_BSC: Tensor, rows: slice) -> tuple[Tensor, ...]:
        weights = [part.in_proj.weight[rows] for part in attentions]
        biases = [part.in_proj.bias[rows] for part in attentions]
        if len(attentions) == 1:
            return (linear(x_BSC, weights[0], biases[0]),)
        return linear(x_BSC, torch.cat(weights), torch.cat(biases)).chunk(len(attentions), dim=-1)

    keys, values = project(key_BSC, slice(dim, 2 * dim)), project(value_BSC, slice(2 * dim, 3 * dim))
    return list(zip(keys, values, strict=True))


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """`F.dropout` that costs nothing, and draws no random numbers, where it does nothing."""
    return F.dropout(x, rate) if training and rate > 0 else x


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: in training, zero whole samples of a residual branch with probability `rate`."""
    if rate == 0.0 or not training:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device, dtype=x.dtype) >= rate
    return x * keep / (1 - rate)


def sine_positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Sine position encoding of a feature map, (S, dim), fp32: y block first, then x block (DETR,
    docs/methods/published-behaviour.md#3-1).

    The ramp of an axis of n cells is 2π·i / (n + 1e-6), i = 1..n: it starts at one cell, not at zero or at a half.
    Not kept: sines are few (one axis at a time), the whole is large.
    """
    features = dim // 2
    exponents = 2 * (torch.arange(features, dtype=torch.float32, device=device) // 2) / features
    frequencies = 10000.0**exponents

    def encode(count: int) -> Tensor:
        ramp = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angles = (ramp / (count + 1e-6) * (2 * math.pi))[:, None] / frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    y = encode(height)[:, None].expand(-1, width, -1)
    x = encode(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform for every weight of two or more dimensions below `module` (biases are left alone)."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def recompute(module: nn.Module) -> None:
    """Keep no intermediate results of `module` in training: they are computed again for the gradient."""
    module.forward = functools.partial(_recomputed, module)  # no closure: it is copied and sent with its module


def _recomputed(module: nn.Module, *args: Any) -> Any:
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False)

"""Convolutions, batch, group and channel norms, in the layouts that they are fast in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.cache import cached_on, clear_cached
from ...ops.cpu.conv import conv2d
from ...ops.cpu.linear import ACTIVATIONS, MAX_PACKED, computed_in, linear, relu
from ...ops.dispatch import is_exporting, is_tracing
from ...ops.group_norm import group_norm as ops_group_norm


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics, scale and shift (buffers), also in training; eps 1e-5."""

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
    """Apply a 1x1 convolution; as a linear layer where channels are innermost already.

    The convolution kernels would copy a map of transformer features into another layout and back. With a stride and
    fewer than 16 channels, oneDNN's weight gradient writes out of bounds (torch 2.6 to 2.15). An exported graph has the
    convolution: its compiler chooses layouts, and tracing the linear layer for a free size takes minutes.
    """
    if is_exporting() or not x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return conv(x_BCHW)
    down, right = conv.stride
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)[:, ::down, ::right]
    return linear(x_BHWC, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def channels_last(x_BCHW: Tensor) -> Tensor:
    """Return the same map with channels innermost, the faster layout for a resize or a convolution on a CPU.

    `contiguous` alone is not enough. A single map cut out of a sequence of tokens may have any stride along the batch,
    which `contiguous` accepts. The resize takes it for another layout, and copies its result twice.
    """
    if is_exporting():
        return x_BCHW
    if x_BCHW.stride(1) != 1:
        return x_BCHW.contiguous(memory_format=torch.channels_last)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    return x_BHWC.flatten(0, 1).unflatten(0, x_BHWC.shape[:2]).permute(0, 3, 1, 2)


def convolved(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """Apply a convolution; the kernel gets the layout of the map, because mixed layouts are slow on a CPU.

    The parameter itself keeps its layout, for checkpoints.
    """
    if is_exporting() or not x_BCHW.is_contiguous(memory_format=torch.channels_last):
        return conv(x_BCHW)
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x_BCHW, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Doubling(nn.ConvTranspose2d):
    """Transposed convolution of 2 x 2 with stride 2, computed as a linear layer: (B, I, H, W) → (B, O, 2H, 2W).

    An exported graph has the convolution. In prediction the matrix of the layer is cached until the weights change.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, 2, stride=2)

    def forward(self, x_BCHW: Tensor, activation: str | None = None) -> Tensor:
        """Double a map. `activation` is one of `ops.cpu.linear.ACTIVATIONS`, or None."""
        if is_exporting():
            y_BCHW = super().forward(x_BCHW)
            return y_BCHW if activation is None else ACTIVATIONS[activation](y_BCHW)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWK = linear(x_BHWC, self._matrix(x_BCHW), self.bias.repeat(4), activation=activation)
        corners_BHWKKO = y_BHWK.unflatten(-1, (2, 2, self.out_channels))
        return corners_BHWKKO.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    def _matrix(self, x_BCHW: Tensor) -> Tensor:
        """Return the weights of all four corners, (4 O, I), in the number format of the product."""
        if torch.is_grad_enabled() or is_tracing():
            clear_cached(self)
            return self._corners()
        dtype = computed_in(x_BCHW)
        return cached_on(self, "matrix", lambda: self._corners().to(dtype), self.weight, dtype)

    def _corners(self) -> Tensor:
        return self.weight.permute(2, 3, 1, 0).flatten(0, 2)


class ConvNorm(nn.Module):
    """Convolution, then a norm, then (optionally) ReLU. Padding keeps the size at stride 1.

    In prediction a batch norm is folded into the convolution: a factor of its weights, and a bias. Folded weights are
    cached if they are small or in another number format than the parameters, and else computed in each call.
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
        """Convolve and normalise.

        Args:
            residual: added before the ReLU.
        """
        if torch.is_grad_enabled():
            clear_cached(self)
        elif is_constant(self.norm) and not is_tracing() and x_BCHW.device.type in ("cpu", "cuda"):
            return conv2d(self.conv, x_BCHW, *self._folded(x_BCHW), relu=self.relu, residual=residual)
        y = pointwise(self.conv, x_BCHW) if self.conv.kernel_size == (1, 1) else convolved(self.conv, x_BCHW)
        y = self.norm(y, overwrite=True) if isinstance(self.norm, GroupNorm) else self.norm(y)
        if residual is not None:
            return F.relu(y + residual, inplace=True) if self.relu else y + residual
        return relu(y) if self.relu else y

    def _folded(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and bias with the norm folded in, in the number format and layout that suit an input."""
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

        scale_O, shift_O = cached_on(self, "norm", scale_and_shift, sources).unbind()
        is_kept = dtype != weight.dtype or weight.numel() <= MAX_PACKED
        return cached_on(self, "folded", scaled, sources, dtype, layout) if is_kept else scaled(), shift_O

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of each channel by the norm, with the bias of the convolution in the shift."""
        norm = self.norm
        scale_O = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift_O = norm.bias.double() - norm.running_mean.double() * scale_O
        if self.conv.bias is not None:
            shift_O = shift_O + self.conv.bias.double() * scale_O
        return scale_O.float(), shift_O.float()


def is_constant(norm: nn.Module) -> bool:
    """Return True if a norm does the same to every image: a batch norm outside training."""
    return isinstance(norm, FrozenBatchNorm) or (
        isinstance(norm, nn.BatchNorm2d) and not norm.training and norm.affine and norm.track_running_stats
    )


class GroupNorm(nn.GroupNorm):
    """Group norm that is exact also with channels innermost; see `ops.group_norm`."""

    def forward(self, x_BCHW: Tensor, overwrite: bool = False) -> Tensor:
        """Normalise.

        Args:
            overwrite: the result may take the place of the input.
        """
        return ops_group_norm(x_BCHW, self.num_groups, self.weight, self.bias, self.eps, overwrite=overwrite)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, eps 1e-6."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def group_norm(channels: int) -> GroupNorm:
    """Make the group norm of pixel decoders: 32 groups."""
    return GroupNorm(32, channels)

"""Convolutions on a CPU: `y = relu(conv(x) + residual)`, two implementations that agree to rounding.

* "plain": `torch.nn.functional.conv2d` and what follows it, the reference; with a gradient always.
* "fused": the convolution of oneDNN, which adds the residual and applies the ReLU in registers. PyTorch's compiler uses
  the same operator. It is not documented, so `fused_kernel_available` tries it first.

`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dispatch import OPERATORS, is_tracing
from .linear import computed_in

IMPLEMENTATIONS = OPERATORS["conv"]


def choose(x_BCHW: Tensor) -> str:
    """Return the implementation that `conv2d` uses for an input by default.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or torch.is_grad_enabled() or x_BCHW.device.type != "cpu":
        return "plain"
    dtype = computed_in(x_BCHW)
    return "fused" if dtype in (torch.float32, torch.bfloat16) and fused_kernel_available(dtype) else "plain"


@functools.cache
def fused_kernel_available(dtype: torch.dtype = torch.float32) -> bool:
    """Return True if the fused convolution exists for a number format and is right."""
    if not torch.backends.mkldnn.is_available():
        return False
    # Not a layer, whose weights would be drawn from the generator of the training.
    conv = SimpleNamespace(stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1)
    x, residual = torch.linspace(-1, 1, 50).view(1, 2, 5, 5), torch.linspace(1, -1, 27).view(1, 3, 3, 3)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):  # the first caller may be inside autocast
        weight, bias = torch.linspace(-1, 1, 54).view(3, 2, 3, 3), torch.ones(3)
        expected = [_plain(conv, x, weight, bias, relu, each) for relu, each in ((True, residual), (False, None))]
        x, weight, bias, residual = (tensor.to(dtype) for tensor in (x, weight, bias, residual))
        try:
            fused = [fused_conv(conv, x, weight, bias, relu, each) for relu, each in ((True, residual), (False, None))]
        except (AttributeError, RuntimeError):  # no such operator, or not for these arguments on this processor
            return False
        rounding = 16 * torch.finfo(dtype).eps  # numbers are up to 10
        pairs = zip(fused, expected, strict=True)
        return all(
            torch.allclose(result.float(), reference, atol=rounding, rtol=rounding) for result, reference in pairs
        )


def conv2d(
    conv: nn.Conv2d,
    x_BCHW: Tensor,
    weight: Tensor,
    bias_O: Tensor | None = None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Convolve with stride, padding, dilation and groups of `conv`, add the residual and apply the ReLU.

    Args:
        weight, bias_O: in place of those of `conv`.
        residual: added to the result before the ReLU, shaped like it.
        impl: one of `IMPLEMENTATIONS.names`; None for the best one.

    Raises:
        ValueError: "fused" was asked for and a gradient is wanted.
    """
    impl = IMPLEMENTATIONS.checked(impl or choose(x_BCHW))
    if impl == "fused" and torch.is_grad_enabled():
        raise ValueError('"fused" convolutions have no gradient: leave M2F_OPS=conv:fused out for training')
    return (fused_conv if impl == "fused" else _plain)(conv, x_BCHW, weight, bias_O, relu, residual)


def _plain(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: Tensor | None
) -> Tensor:
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    y = y if residual is None else y + residual
    return F.relu(y, inplace=residual is not None or not torch.is_grad_enabled()) if relu else y


def fused_conv(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, residual: Tensor | None
) -> Tensor:
    dtype = computed_in(x)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    operator, activation = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else "none"
    if residual is None:
        return operator(x, weight, bias, *geometry, activation, [], "")
    if residual.dtype != dtype:
        y = operator(x, weight, bias, *geometry, "none", [], "") + residual
        return y.relu_() if relu else y
    return operator.binary(x, residual, weight, bias, *geometry, "add", 1.0, "relu" if relu else None, [], None)

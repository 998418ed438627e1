"""Linear layers in fp32 on a CPU: `y = x Wᵀ + b`, one function, two ways to compute it that agree to rounding.

* "blas": `torch.nn.functional.linear`, the reference.
* "convolution": a convolution with a 1x1 kernel, channels innermost, and its gradient written out. The same product by
  another library (oneDNN). PyTorch's matrix products come from Intel's MKL, which on other makers' processors runs
  slower code: measured on an AMD EPYC with AVX-512, 5376 rows, 256 to 1024 channels: 184 against 131 GFLOP/s.

`M2F_LINEAR` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IMPLEMENTATIONS = ("blas", "convolution")
CPU_INFO = Path("/proc/cpuinfo")
MIN_ROWS = 256  # below, preparing the convolution costs more than it gains (measured: 100 rows slower, 256 faster)


def choose(x: Tensor) -> str:
    """The implementation that `linear` uses for an input when nobody says otherwise.

    Convolutions are for fp32 on a CPU while nobody traces or casts, and for many rows.

    Raises:
        ValueError: `M2F_LINEAR` is no implementation.
    """
    override = os.environ.get("M2F_LINEAR", "auto")
    if override != "auto":
        return _checked(override)
    suits = (
        not torch.compiler.is_compiling()  # first: sizes that are symbols must not be compared
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= MIN_ROWS * x.shape[-1]
    )
    return "convolution" if suits and is_blas_slow() else "blas"


@functools.cache
def is_blas_slow() -> bool:
    """Whether matrix products come from MKL and the processor is an x86 of another maker than Intel."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_x86 and has_both and "intel" not in _maker().lower()


def _maker() -> str:
    """What the system says of the processor; "Intel" if it says nothing."""
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith("vendor_id")), "Intel")
    return platform.processor() or "Intel"


def _checked(name: str) -> str:
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"linear layers have no implementation {name!r}: it is one of {known}")
    return name


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """`torch.nn.functional.linear`: (..., I) → (..., O).

    Args:
        impl: "blas" or "convolution"; None for the better one on this machine.
    """
    if _checked(impl or choose(x)) == "blas":
        return F.linear(x, weight_OI, bias_O)
    image_1I1R = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # one row of pixels, channels innermost
    convolve = _Pointwise.apply if torch.is_grad_enabled() else _pointwise
    return convolve(image_1I1R, weight_OI, bias_O).permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight_OI))


def _pointwise(x_1I1R: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    # Dilation means nothing to a kernel of one place; without it, PyTorch with one thread takes a slow way of its own.
    return F.conv2d(x_1I1R, weight_OI[:, :, None, None], bias_O, dilation=2)


class _Pointwise(torch.autograd.Function):
    """PyTorch's own gradient of a convolution is slower than these three products."""

    @staticmethod
    def forward(ctx, x_1I1R: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_1I1R, weight_OI)
        return _pointwise(x_1I1R, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_1O1R: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_1I1R, weight_OI = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_OR = grad_1O1R[0, :, 0]
        return (
            _pointwise(grad_1O1R, weight_OI.T, None) if for_x else None,
            grad_OR @ x_1I1R[0, :, 0].T if for_weight else None,
            grad_OR.sum(1) if for_bias else None,
        )


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`: same parameters, same start."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

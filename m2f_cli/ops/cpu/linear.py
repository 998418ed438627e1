"""Linear layers on a CPU: `y = activation(x Wᵀ + b) + residual`, two implementations that agree to rounding.

* "blas": `torch.nn.functional.linear` and what follows it, the reference.
* "fused": the product of oneDNN, which adds the residual or applies the activation in registers (with a gradient: the
  product alone). It also replaces PyTorch's fp32 products by MKL, which are slow on processors that Intel did not make.
  PyTorch's compiler uses the same operators. They are not documented, so `fused_kernel_available` tries them first.

A `Linear` caches its weights in oneDNN's own order where that costs little memory; else every call reorders them.

`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..cache import cached_on, clear_cached
from ..dispatch import OPERATORS, is_tracing

IMPLEMENTATIONS = OPERATORS["linear"]
CPU_INFO = Path("/proc/cpuinfo")
MIN_ROWS_FUSED = 64  # below, its preparation costs more than it gains
MIN_ROWS = 256  # the same with a gradient, of which a part does not gain
MAX_PACKED = 2**18  # weights of a layer that may be in memory twice in fp32


def choose(x: Tensor) -> str:
    """Return the implementation that `linear` uses for an input by default.

    "fused" is for many rows on an x86 CPU while nothing is traced; with a gradient only in fp32 and where PyTorch's
    own products are slow.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or x.device.type != "cpu":  # first: sizes that are symbols must not be compared
        return "blas"
    dtype, rows = computed_in(x), x.numel() // max(x.shape[-1], 1)
    if torch.is_grad_enabled():
        gains = dtype == torch.float32 and rows >= MIN_ROWS and is_blas_slow()
    else:
        gains = dtype in (torch.float32, torch.bfloat16) and rows >= MIN_ROWS_FUSED
    return "fused" if gains and fused_kernel_available(dtype) else "blas"


def computed_in(x: Tensor) -> torch.dtype:
    """Return the number format of the product: that of autocast, if it is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@functools.cache
def is_blas_slow() -> bool:
    """Return True if matrix products come from MKL and the processor is an x86 that Intel did not make."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_x86 and has_both and "intel" not in _maker().lower()


def _maker() -> str:
    """Return the vendor of the processor as the system names it; "Intel" if it names none."""
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith("vendor_id")), "Intel")
    return platform.processor() or "Intel"


@functools.cache
def fused_kernel_available(dtype: torch.dtype = torch.float32) -> bool:
    """Return True if the fused product exists for a number format and is right. On x86 only: not timed elsewhere."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.linspace(-1, 1, 24).view(3, 8), torch.linspace(-1, 1, 32).view(4, 8), torch.ones(4)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):  # the first caller may be inside autocast
        expected = F.linear(x, weight, bias)
        lowered = [tensor.to(dtype) for tensor in (x, weight, bias)]
        try:
            in_order = packed(lowered[1], len(x))
            fused = (
                fused_linear(*lowered, "gelu", None),
                fused_linear(*lowered, None, expected.to(dtype)),
                fused_linear(lowered[0], in_order, lowered[2], None, None),
            )
        except (AttributeError, RuntimeError):  # no such operator, or not for these arguments on this processor
            return False
        pairs = zip(fused, (F.gelu(expected), 2 * expected, expected), strict=True)
        rounding = 8 * torch.finfo(dtype).eps  # numbers are up to 10
        return all(
            torch.allclose(result.float(), reference, atol=rounding, rtol=rounding) for result, reference in pairs
        )


def relu(x: Tensor) -> Tensor:
    """Apply a ReLU, in place if no gradient is wanted (the gradient of a view would be copied)."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": F.gelu}


def linear(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Apply `torch.nn.functional.linear`, (..., I) → (..., O), then the activation, then the residual.

    Args:
        activation: "relu" or "gelu" (exact), applied to the product.
        residual: added at the end, shaped like the result.
        impl: one of `IMPLEMENTATIONS.names`; None for the best one on this machine.
    """
    impl = IMPLEMENTATIONS.checked(impl or choose(x))
    if impl == "fused" and not torch.is_grad_enabled():
        return fused_linear(x, weight_OI, bias_O, activation, residual)
    if impl == "fused":
        dtype = computed_in(x)
        x_RI = x.reshape(-1, x.shape[-1]).to(dtype)
        y_RO = _Fused.apply(x_RI, weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype))
        y = y_RO.view(*x.shape[:-1], -1)
    else:
        y = F.linear(x, weight_OI, bias_O)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else residual + y


def packed(weight_OI: Tensor, rows: int) -> Tensor:
    """Reorder weights for oneDNN and about so many rows. Only "fused" takes the result, for any number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), rows)


def fused_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """Apply a linear layer. `weight_OI` may be `packed`."""
    dtype = computed_in(x)
    x, weight_OI = x.to(dtype), weight_OI if weight_OI.is_mkldnn else weight_OI.to(dtype)
    bias_O = None if bias_O is None else bias_O.to(dtype)
    operator = torch.ops.mkldnn._linear_pointwise
    if residual is not None and activation is None and residual.dtype == dtype:
        return operator.binary(x, residual.expand(*x.shape[:-1], -1), weight_OI, bias_O, "add")
    exact = "none" if activation == "gelu" else ""  # of two ways to compute a GELU
    y = operator(x, weight_OI, bias_O, activation or "none", [], exact)
    return y if residual is None else residual + y


class _Fused(torch.autograd.Function):
    """The fused product and its gradient for the input; the gradient of the weights is a plain product."""

    @staticmethod
    def forward(ctx, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        return fused_linear(x_RI, weight_OI, bias_O, None, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_RI, weight_OI = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_RO = grad_RO.contiguous()
        with torch.autocast("cpu", enabled=False):
            return (
                fused_linear(grad_RO, weight_OI.T, None, None, None) if for_x else None,
                grad_RO.T @ x_RI if for_weight else None,
                grad_RO.sum(0) if for_bias else None,
            )


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`, with the same parameters; the call also takes an activation and a residual.

    In prediction the weights are converted to the number format and order of the product, and cached until they change.
    Weights that are computed in each call, as by LoRA, are not cached.

    Attributes:
        activation: the activation of calls that name none.
    """

    activation: str | None = None

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        weight, bias = self.weight, self.bias
        kind = x.device.type
        is_parameter = isinstance(weight, nn.Parameter)
        is_kept = is_parameter and kind in ("cpu", "cuda") and not torch.is_grad_enabled() and not is_tracing()
        if torch.is_grad_enabled() and not is_tracing():
            clear_cached(self)
        impl, is_lowered = choose(x), is_kept and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if is_lowered else weight.dtype
        if is_kept and impl == "fused" and self._is_worth_packing(x, dtype):
            rows = x.numel() // x.shape[-1]
            weight = cached_on(self, "packed", lambda: packed(weight.to(dtype), rows), weight, dtype)
        elif is_lowered:
            weight = cached_on(self, "weight", lambda: weight.to(dtype), weight, dtype)
        if is_lowered and bias is not None:
            bias = cached_on(self, "bias", lambda: bias.to(dtype), bias, dtype)
        return linear(x, weight, bias, activation=activation or self.activation, residual=residual, impl=impl)

    def _is_worth_packing(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return True if packed weights cost little memory: in fp32 they are a copy, else they replace one."""
        if x.numel() < MIN_ROWS * x.shape[-1] or self.weight.is_inference():  # nothing of the latter is cached
            return False
        return dtype != self.weight.dtype or self.weight.numel() <= MAX_PACKED

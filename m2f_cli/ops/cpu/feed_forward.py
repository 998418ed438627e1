"""Feed-forward networks on a CPU: `second(activation(first(x))) + residual`, two implementations.

* "layers": two linear layers, the reference.
* "own": for training, with the gradient written out. It keeps one wide tensor where PyTorch keeps two, because it
  computes a GELU again. It splits the rows into chunks, and changes the wide gradient in place.

`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cache import clear_cached
from ..dispatch import OPERATORS, is_tracing
from .chunking import CHUNK_ELEMENTS, in_chunks
from .linear import MIN_ROWS, Linear, computed_in, linear

IMPLEMENTATIONS = OPERATORS["feed_forward"]


def choose(x: Tensor) -> str:
    """Return the implementation that `feed_forward` uses for an input by default.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or not torch.is_grad_enabled() or x.device.type != "cpu":
        return "layers"
    is_large = x.numel() >= MIN_ROWS * x.shape[-1]
    return "own" if is_large and computed_in(x) in (torch.float32, torch.bfloat16) else "layers"


def feed_forward(
    x: Tensor,
    first: Linear,
    second: Linear,
    activation: str,
    residual: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Return `second(activation(first(x)))`, (..., I) → (..., O), plus the residual.

    Args:
        activation: "relu" or "gelu" (exact).
        impl: one of `IMPLEMENTATIONS.names`; None for the best one here.
    """
    if IMPLEMENTATIONS.checked(impl or choose(x)) == "layers":
        return second(first(x, activation), residual=residual)
    clear_cached(first)
    clear_cached(second)
    x_RI = x.flatten(0, -2).to(computed_in(x))
    parameters = (first.weight, first.bias, second.weight, second.bias)
    with torch.autocast("cpu", enabled=False):
        y_RO = _FeedForward.apply(x_RI, *parameters, activation)
    y = y_RO.view(*x.shape[:-1], -1)
    return y if residual is None else residual + y


class _FeedForward(torch.autograd.Function):
    """A feed-forward network that keeps its input, and what enters a GELU or leaves a ReLU.

    It computes in the precision of the input. Gradients of the parameters have the precision of these.
    """

    @staticmethod
    def forward(ctx, x_RI, *parameters_and_activation) -> Tensor:
        *parameters, activation = parameters_and_activation
        weight_HI, bias_H, weight_OH, bias_O = (p.to(x_RI.dtype) for p in parameters)
        if activation == "relu":
            hidden_RH = linear(x_RI, weight_HI, bias_H, activation="relu")
            y_RO = linear(hidden_RH, weight_OH, bias_O)
        else:
            hidden_RH = linear(x_RI, weight_HI, bias_H)
            y_RO = in_chunks(lambda h: linear(F.gelu(h), weight_OH, bias_O), len(weight_HI), hidden_RH)
        ctx.activation, ctx.parameters = activation, parameters[0].dtype
        ctx.save_for_backward(x_RI, hidden_RH, weight_HI, weight_OH)
        return y_RO

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RO: Tensor):
        x_RI, hidden_RH, weight_HI, weight_OH = ctx.saved_tensors
        grad_RI, grad_RO = torch.empty_like(x_RI), grad_RO.contiguous()
        of_first = of_second = grad_bias_H = None
        with torch.autocast("cpu", enabled=False):
            step = -(-len(x_RI) // -(-hidden_RH.numel() // CHUNK_ELEMENTS))
            for grad, x, hidden, grad_x in zip(
                *(t.split(step) for t in (grad_RO, x_RI, hidden_RH, grad_RI)), strict=True
            ):
                grad_hidden = linear(grad, weight_OH.T)
                if ctx.activation == "relu":
                    of_second = _plus_product(of_second, grad, hidden)
                    torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
                else:
                    of_second = _plus_product(of_second, grad, F.gelu(hidden))
                    torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
                of_first = _plus_product(of_first, grad_hidden, x)
                bias_H = grad_hidden.sum(0).float()
                grad_bias_H = bias_H if grad_bias_H is None else grad_bias_H + bias_H
                grad_x.copy_(linear(grad_hidden, weight_HI.T))
        of_parameters = (of_first, grad_bias_H, of_second, grad_RO.sum(0))
        return grad_RI, *(grad.to(ctx.parameters) for grad in of_parameters), None


def _plus_product(total_OI: Tensor | None, grad_RO: Tensor, x_RI: Tensor) -> Tensor:
    """Add the gradient of the weights from these rows; the sum of several products is fp32."""
    if total_OI is None:
        return grad_RO.T @ x_RI
    if grad_RO.dtype == torch.float32:
        return total_OI.addmm_(grad_RO.T, x_RI)
    return total_OI.float() + grad_RO.T @ x_RI

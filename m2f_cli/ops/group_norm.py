"""Group norm: one function, two implementations that agree to rounding.

* "plain": `torch.group_norm`, the reference; always where a gradient is wanted.
* "chunked": for fp32 maps with channels innermost, on a CPU. PyTorch's own kernel for that layout subtracts the squared
  mean from the mean square, which loses the digits that both have in common. Here each chunk of rows has its mean and
  its variance around it, which are combined in fp64.

The statistics of a chunk are those of a batch norm. That function is not documented, so `has_statistics` tries it.
`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .dispatch import OPERATORS, is_tracing

IMPLEMENTATIONS = OPERATORS["group_norm"]
THREAD_ELEMENTS = 2**16  # values of a chunk that one thread adds up: few enough for exact sums


def choose(x_BCHW: Tensor) -> str:
    """Return the implementation that `group_norm` uses for an input by default.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_tracing() or torch.is_grad_enabled() or x_BCHW.device.type != "cpu" or x_BCHW.dtype != torch.float32:
        return "plain"
    innermost = x_BCHW.is_contiguous(memory_format=torch.channels_last) and not x_BCHW.is_contiguous()
    return "chunked" if innermost and x_BCHW.numel() and has_statistics() else "plain"


@functools.cache
def has_statistics() -> bool:
    """Return True if PyTorch gives the mean and the biased variance of each column of a matrix, and they are right."""
    rows_SC = torch.linspace(-1, 1, 21).view(7, 3) + 5
    try:
        mean_C, variance_C = torch.batch_norm_update_stats(rows_SC, None, None, 0.0)
    except (AttributeError, RuntimeError, TypeError):  # no such function, or with other arguments
        return False
    expected = (rows_SC.mean(0), rows_SC.var(0, correction=0))
    return all(map(functools.partial(torch.allclose, rtol=1e-5), (mean_C, variance_C), expected))


def group_norm(
    x_BCHW: Tensor,
    groups: int,
    weight_C: Tensor,
    bias_C: Tensor,
    eps: float,
    *,
    overwrite: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Normalise each group of channels of each image, then scale and shift each channel.

    Args:
        overwrite: the result may take the place of the input.
        impl: one of `IMPLEMENTATIONS.names`; None for the best one.

    Raises:
        ValueError: "chunked" was asked for and a gradient is wanted.
    """
    impl = IMPLEMENTATIONS.checked(impl or choose(x_BCHW))
    if impl == "plain":
        # Not by torch.nn.functional, which refuses a group of one value: the smallest map of a small network.
        return torch.group_norm(x_BCHW, groups, weight_C, bias_C, eps)
    if torch.is_grad_enabled():
        raise ValueError('"chunked" group norm has no gradient: leave M2F_OPS=group_norm:chunked out for training')
    scale_BC, shift_BC = _scale_and_shift(x_BCHW, groups, weight_C, bias_C, eps)
    out = x_BCHW if overwrite else torch.empty_like(x_BCHW)
    return torch.addcmul(shift_BC[..., None, None], x_BCHW, scale_BC[..., None, None], out=out)


def _scale_and_shift(
    x_BCHW: Tensor, groups: int, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel of each image by the norm: fp32, computed in fp64."""
    x_BSC = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
    rows = max(1, THREAD_ELEMENTS * torch.get_num_threads() // x_BSC.shape[-1])
    statistics = [_statistics(x_SC, rows, groups) for x_SC in x_BSC]
    mean_BG1, variance_BG1 = (torch.stack(each) for each in zip(*statistics, strict=True))
    weight_GC, bias_GC = (tensor.double().unflatten(0, (groups, -1)) for tensor in (weight_C, bias_C))
    scale_BGC = (variance_BG1 + eps).rsqrt() * weight_GC
    shift_BGC = bias_GC - mean_BG1 * scale_BGC
    return scale_BGC.flatten(1).float(), shift_BGC.flatten(1).float()


def _statistics(x_SC: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each group, (G, 1) each, fp64."""
    chunks = x_SC.split(rows)
    # `mean` adds in a tree. The statistics of a batch norm add row by row: exact enough for the variance alone.
    moments = [(chunk.mean(0), torch.batch_norm_update_stats(chunk, None, None, 0.0)[1]) for chunk in chunks]
    mean_NC, variance_NC = (torch.stack(each).double() for each in zip(*moments, strict=True))
    mean_NGC, variance_NGC = mean_NC.unflatten(1, (groups, -1)), variance_NC.unflatten(1, (groups, -1))
    share_N11 = torch.tensor([len(chunk) / len(x_SC) for chunk in chunks], dtype=torch.float64)[:, None, None]
    mean_G1 = (mean_NGC * share_N11).sum(0).mean(-1, keepdim=True)
    spread_NGC = variance_NGC + (mean_NGC - mean_G1).square()
    return mean_G1, (spread_NGC * share_N11).sum(0).mean(-1, keepdim=True)

"""Multi-scale deformable attention: a weighted sum of bilinear samples (Deformable DETR, eq. 3).

`deform_attn` has four implementations that agree to rounding, forward and backward:

* "reference": `grid_sample`, level by level.
* "bag": weighted sums of rows of a table by `torch.nn.functional.embedding_bag`; the fastest on a CPU.
* "gather": the same rows by indexing. For export: a known inference compiler fuses `GridSample` around this operator
  into wrong numbers.
* "triton": one kernel each way, for GPUs; experimental.

`M2F_OPS` (or the argument `impl`) overrides the choice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import MissingDependency
from ..dispatch import OPERATORS, is_exporting
from . import embedding_bag, gather, reference

IMPLEMENTATIONS = OPERATORS["deformable_attention"]
EVERYWHERE = ("reference", "bag", "gather")  # those that run on every device
HAS_TRITON = importlib.util.find_spec("triton") is not None


def implementations(device: torch.device) -> tuple[str, ...]:
    """Return the implementations that run on a device."""
    return IMPLEMENTATIONS.names if _runs_triton(device) else EVERYWHERE


def _runs_triton(device: torch.device) -> bool:
    """Triton compiles for Volta (7.0) and later."""
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_properties(device).major >= 7


def choose(device: torch.device) -> str:
    """Return the implementation that `deform_attn` uses on a device by default.

    Raises:
        ConfigError: the environment asks for none of the implementations.
    """
    override = IMPLEMENTATIONS.override()
    if override is not None:
        return override
    if is_exporting():
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
    samplers = {
        "reference": reference.sample,
        "bag": embedding_bag.sample,
        "gather": gather.sample,
        "triton": _sample_by_triton,
    }
    sample = samplers[IMPLEMENTATIONS.checked(impl or choose(value_BSAD.device))]
    return sample(value_BSAD, tuple(map(tuple, shapes)), x_BNALP, y_BNALP, weights_BNALP)


def _sample_by_triton(*inputs):
    try:
        from .triton import sample  # only here: importing Triton takes a second
    except ImportError as error:
        raise MissingDependency("triton", "M2F_OPS=deformable_attention:triton") from error
    return sample(*inputs)

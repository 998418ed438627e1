"""Export of a checkpoint of m2f: one file with weights, configuration and classes, in fp32 or fp16."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import weights
from ..errors import ConfigError, ExportError
from ..inference.load_network import load_model
from ..inference.segmenter import Segmenter
from .base import ExportOptions, refuse_options

NOT_FOR_WEIGHTS = ("size", "batch", "postprocess", "normalise", "opset", "runner", "extra")  # options of graphs alone


class Safetensors:
    """Exporter of safetensors files. fp16 halves the file; the weights are fp32 again when it is loaded."""

    suffix = ".safetensors"
    packages = ("safetensors",)

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("safetensors", options, *NOT_FOR_WEIGHTS)
        refuse_precision("safetensors", options, "fp32", "fp16")

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        state = model.model.state_dict()
        if options.precision == "fp16":
            state = {name: _half(name, tensor) for name, tensor in state.items()}
        weights.save(path, state, model.config, model.categories)

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        loaded = load_model(path, trust_code=True)  # this process wrote it
        return Segmenter(loaded.model, loaded.config, loaded.categories, task=model.default_task)


def refuse_precision(format: str, options: ExportOptions, *known: str) -> None:
    """Refuse a number format that is not among the known ones of a format.

    Raises:
        ConfigError: the precision is unknown to the format.
    """
    if options.precision not in known:
        raise ConfigError(
            f"The format {format} has no precision {options.precision!r}.", hint=f"It has: {', '.join(known)}."
        )


def _half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not half.isfinite().all():
        raise ExportError(
            f"{name!r} has values up to {tensor.abs().max().item():.3g}, more than fp16 can hold.",
            hint="Export it in fp32.",
        )
    return half

"""Compilation of the parts of a model that torch.compile makes faster."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from torch import nn

from ..errors import ConfigError
from ..model.pixel_decoders.deformable import softmax_on_cpu
from ..ops.deformable_attention.embedding_bag import corners_on_cpu

if TYPE_CHECKING:
    from .base import BaseSegmenter

COMPILERS = ("c++", "g++", "clang++", "cl")


def compile_parts(segmenter: BaseSegmenter) -> None:
    """Compile the parts of the network in place, each when it first runs.

    On a CPU, only the preparation of deformable attention is compiled. The rest is matrix products of libraries, which
    torch.compile makes slower.

    Raises:
        ConfigError: the model is an exported file, or a CPU has no C++ compiler.
    """
    if segmenter.model is None:
        raise ConfigError(f"--compile is for networks of PyTorch; {segmenter.source} is an exported file.")
    if segmenter.device.type != "cpu":
        for part in parts_of(segmenter.model).values():
            part.compile()
        return
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))):
        raise ConfigError(
            f"--compile on a CPU needs a C++ compiler, and none of {', '.join(COMPILERS)} is on the path.",
            hint="Install one, name one in CXX, or leave --compile out.",
        )
    compile_operators()


def compile_operators() -> None:
    """Compile the operators that become faster on a CPU; see `ops.compiled`."""
    for each in (corners_on_cpu, softmax_on_cpu):
        each.compile()


def parts_of(network: nn.Module | None) -> dict[str, nn.Module]:
    """Return the parts of a network by the names of their stages; nothing for an exported file."""
    names = {"backbone": "backbone", "pixel decoder": "pixel_decoder", "decoder": "decoder"}
    return {shown: getattr(network, name) for shown, name in names.items() if hasattr(network, name)}

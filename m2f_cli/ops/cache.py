"""Constants that depend only on shapes (grids, window orders, masks) are made once and kept for a few shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)
KEPT = 16  # results per function: two picture sizes of a Swin; pictures of many sizes must not fill the memory


def cached_by_shape(make: F) -> F:
    """Keep the last results of a pure function of hashable arguments that returns tensors.

    The tensors are ordinary ones even when they are first needed under `inference_mode`, so that training can use
    them later. While PyTorch traces (compile, export) nothing is kept: a tracer's tensors must not leak out.
    """
    kept = functools.lru_cache(maxsize=KEPT)(make)

    @functools.wraps(make)
    def call(*args):
        if torch.compiler.is_compiling():
            return make(*args)
        with torch.inference_mode(False), torch.no_grad():
            return kept(*args)

    call.cache_clear = kept.cache_clear
    return call

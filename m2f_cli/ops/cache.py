"""Constants that depend only on shapes (grids, window orders, masks) are made once and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

F = TypeVar("F", bound=Callable)


def cached_by_shape(make: F) -> F:
    """Keep the last results of a pure function of hashable arguments that returns tensors.

    The tensors are ordinary ones even when they are first needed under `inference_mode`, so that training can use
    them later. While PyTorch traces (compile, export) nothing is kept: a tracer's tensors must not leak out.
    """
    kept = functools.lru_cache(maxsize=64)(make)

    @functools.wraps(make)
    def call(*args):
        if torch.compiler.is_compiling():
            return make(*args)
        with torch.inference_mode(False), torch.no_grad():
            return kept(*args)

    call.cache_clear = kept.cache_clear
    return call

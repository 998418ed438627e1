"""Caches: constants that depend on shapes only (grids, window orders, masks), and parameters in another form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable)
KEPT = 16  # results per function, enough for two image sizes of a Swin; many sizes must not fill the memory


def cached_by_shape(make: F) -> F:
    """Cache the last results of a pure function of hashable arguments that returns tensors.

    The tensors are ordinary ones even when they are first needed under `inference_mode`, so that training can use
    them later. While PyTorch traces (compile, export) nothing is cached: tensors of a tracer must not leak out.
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


def cached_on(
    owner: nn.Module, name: str, make: Callable[[], Tensor], sources: Tensor | Sequence[Tensor], *settings: Any
) -> Tensor:
    """Return what `make` makes of parameters and buffers, cached on a module until they or the settings change.

    PyTorch does not count changes by a fused optimiser, so the optimiser of `training` counts them itself. For other
    ones, each forward pass with a gradient calls `clear_cached`; it comes before any step of an optimiser.

    Args:
        name: of the cached tensor on this module.
        settings: what else the result depends on, such as a number format.
    """
    sources = (sources,) if isinstance(sources, Tensor) else tuple(sources)
    if any(source.is_inference() for source in sources):  # PyTorch does not count their changes
        return make()
    kept = owner.__dict__.setdefault("_module_cache", ModuleCache())
    # Most changes in place raise the version; `.to(device)` and `.data = …` do not, but move the numbers.
    state = (*((id(source), source._version, source.data_ptr()) for source in sources), *settings)
    entry = kept.get(name)  # looked up once: another thread may replace the entry
    if entry is None or entry[1] != state:
        with torch.inference_mode(False), torch.no_grad():
            entry = kept[name] = (sources, state, make())  # keeps the sources alive, so that ids stay unique
    return entry[2]


def clear_cached(owner: nn.Module) -> None:
    """Drop what is cached on a module, because its parameters are about to change."""
    if not torch.compiler.is_compiling():  # Dynamo of PyTorch 2.6 cannot trace it
        owner.__dict__.pop("_module_cache", None)


class ModuleCache(dict):
    """Cached tensors of a module, not copied or pickled with it: not every layout can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleCache:
        return ModuleCache()

    def __reduce__(self) -> tuple[type[ModuleCache], tuple[()]]:
        return ModuleCache, ()

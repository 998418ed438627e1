"""What is made once and kept: constants that depend only on shapes (grids, window orders, masks), for a few shapes; and
parameters in another form (number format, layout), until they change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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


def derived(
    owner: nn.Module, name: str, make: Callable[[], Tensor], sources: Tensor | Sequence[Tensor], *settings: Any
) -> Tensor:
    """What `make` makes of parameters and buffers, kept by a module as long as neither they nor the settings change.

    Not every change is seen: PyTorch counts those of a fused optimiser no more than those of `.data`. Before an
    optimiser's step there is a forward pass with a gradient, though: whoever keeps something calls `forget` in that.

    Args:
        name: tells the things that a module keeps apart.
        settings: what else the result depends on (a number format, say).
    """
    sources = (sources,) if isinstance(sources, Tensor) else tuple(sources)
    if any(source.is_inference() for source in sources):  # nobody counts their changes
        return make()
    kept = owner.__dict__.setdefault("_derived", _Kept())
    # Most changes in place raise the version; `.to(device)` and `.data = …` do not, but move the numbers.
    state = (*((id(source), source._version, source.data_ptr()) for source in sources), *settings)
    entry = kept.get(name)  # asked once: another thread may put an entry of other settings there
    if entry is None or entry[1] != state:
        with torch.inference_mode(False), torch.no_grad():
            entry = kept[name] = (sources, state, make())  # which keeps the sources alive, and so their ids theirs
    return entry[2]


def forget(owner: nn.Module) -> None:
    """Drop what a module keeps of its parameters: they are about to change, and memory is for training."""
    owner.__dict__.pop("_derived", None)


class _Kept(dict):
    """Stays behind when its module is copied or sent away: it can be made again, and not every layout can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()

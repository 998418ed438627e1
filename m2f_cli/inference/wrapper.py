"""What stands around a segmenter and looks like one: test-time augmentation, tiles, windows."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..structures import Task
from .segmenter import Segmenter


class Wrapper:
    """A segmenter around another. What a subclass does not define is the inner one's: categories, device, notes, …

    Like a `Segmenter` it has `prepare` (any thread), `infer` (one thread) and `finish` (any thread); what goes from one
    to the next is its own.
    """

    def __init__(self, inner: Any):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet, as while a copy is unpacked: asking the inner one would never end
            raise AttributeError(name)
        return getattr(self.inner, name)

    def check_task(self, task: str) -> Task:
        return self.inner.check_task(task)

    __call__ = Segmenter.__call__


def refuse_wrapped(segmenter: Any, what: str) -> None:
    """Raises:
    ConfigError: `segmenter` is a wrapper already.
    """
    if isinstance(segmenter, Wrapper):
        raise ConfigError(
            f"{what} goes directly around a model, not around {type(segmenter).__name__}.",
            hint="Tiles go around test-time augmentation: tiled(with_tta(model), 1024).",
        )

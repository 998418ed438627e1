"""Time of a run by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, TypeAlias

import torch
from torch import nn

Method: TypeAlias = tuple[Any, str]  # a class or an object, and the name of its method
ORDER = (
    "read",
    "preprocess",
    "backbone",
    "pixel decoder",
    "decoder",
    "render",
    "post",
    "score",
    "loss",
    "backward",
    "optimizer",
    "write",
)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stages:
    """Seconds by the name of a stage. The time of a stage inside another one counts for the inner stage alone.

    Args:
        live: measure. Measuring waits for the device at both ends of each stage, so a run that is timed as a whole
            must not be live. Without it, nothing is done.
    """

    def __init__(self, device: torch.device, *, live: bool):
        self.device, self.live = device, live
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[float, float]] = []  # when each stage began, and the seconds of stages inside it

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.live:
            yield
            return
        self._begin()
        yield
        self._end(name)

    @contextmanager
    def watching(
        self, parts: Mapping[str, nn.Module], methods: Mapping[str, Sequence[Method]] | None = None
    ) -> Iterator[None]:
        """Time the forward passes of modules, and calls of methods in this thread."""
        with ExitStack() as hooks:
            for name, part in parts.items() if self.live else ():
                hooks.callback(part.register_forward_pre_hook(lambda *_: self._begin()).remove)
                hooks.callback(part.register_forward_hook(lambda *_, name=name: self._end(name)).remove)
            for name, owners in (methods or {}).items() if self.live else ():
                for owner, method in owners:
                    hooks.callback(_restoring(owner, method))
                    setattr(owner, method, self._watched(name, getattr(owner, method)))
            yield

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            with self(name):
                return function(*arguments, **options)

        return watched

    def _begin(self) -> None:
        synchronise(self.device)
        self._open.append((time.perf_counter(), 0.0))

    def _end(self, name: str) -> None:
        synchronise(self.device)
        started, inside = self._open.pop()
        seconds = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - inside
        if self._open:
            began, others = self._open[-1]
            self._open[-1] = began, others + seconds


def _restoring(owner: Any, method: str) -> Callable[[], None]:
    """Return a function that puts a method back, or deletes it if the owner only inherited it."""
    own = vars(owner)
    return partial(setattr, owner, method, own[method]) if method in own else partial(delattr, owner, method)


def split(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """Return the stages in the order of the work. The remaining time is "other"."""
    known = {name: seconds[name] for name in (*ORDER, *seconds) if name in seconds}
    return {**known, "other": max(0.0, total - sum(known.values()))}

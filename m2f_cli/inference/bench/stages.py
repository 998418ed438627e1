"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

ORDER = ("read", "preprocess", "backbone", "pixel decoder", "decoder", "render", "post", "score", "loss", "backward",
         "optimizer", "write")  # fmt: skip


def synchronise(device: torch.device) -> None:
    """Wait for the work that was handed to a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stages:
    """Adds up seconds by the name of a stage. Not live, it costs nothing and adds nothing: watching a stage waits for
    the device at both its ends, which a run that is timed as a whole must not."""

    def __init__(self, device: torch.device, *, live: bool):
        self.device, self.live = device, live
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.live:
            yield
            return
        started = self._now()
        yield
        self._add(name, started)

    @contextmanager
    def watching(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Time the forward passes of modules."""
        with ExitStack() as hooks:
            for name, part in parts.items() if self.live else ():
                self._watch(name, part, hooks)
            yield

    def _watch(self, name: str, part: nn.Module, hooks: ExitStack) -> None:
        begun: list[float] = []
        hooks.callback(part.register_forward_pre_hook(lambda *_: begun.append(self._now())).remove)
        hooks.callback(part.register_forward_hook(lambda *_: self._add(name, begun.pop())).remove)

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def _add(self, name: str, started: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started


def split(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """Stages in the order of the work; what none of them explains is "other"."""
    known = {name: seconds[name] for name in (*ORDER, *seconds) if name in seconds}
    return {**known, "other": max(0.0, total - sum(known.values()))}

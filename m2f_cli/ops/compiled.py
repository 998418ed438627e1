"""Small pure functions that gain from torch.compile on a CPU: one loop in place of many passes over memory.

Each works without: `plain` is what PyTorch runs best as it stands, `loop` is what a compiler makes one loop of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Compilable:
    """A function in two forms that agree to rounding. It runs as `plain` until somebody says `compile`."""

    def __init__(self, plain: Callable[..., Any], loop: Callable[..., Any] | None = None):
        self.plain, self.loop = plain, loop or plain
        self.runs = plain

    def __call__(self, *args: Any) -> Any:
        return self.runs(*args)

    def compile(self) -> None:
        """From now on in this process, for all sizes (a C++ compiler is needed; seconds, and kept on disk)."""
        self.runs = torch.compile(self.loop, dynamic=True)

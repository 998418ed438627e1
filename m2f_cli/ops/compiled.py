"""Small pure functions that gain from torch.compile on a CPU: one loop in place of many passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CompilableOp:
    """A function that runs as it is until `compile` is called.

    Attributes:
        eager: the function.
        runs: what a call runs, the function or its compiled form.
    """

    def __init__(self, eager: Callable[..., Any]):
        self.eager = self.runs = eager

    def __call__(self, *args: Any) -> Any:
        return self.runs(*args)

    def compile(self) -> None:
        """Compile the function in this process, for all sizes. This needs a C++ compiler and takes seconds."""
        self.runs = torch.compile(self.eager, dynamic=True)

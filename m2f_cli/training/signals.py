"""Ctrl-C and SIGTERM: asked to stop, a run ends after the step in progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds within which a second signal is the first one again


@dataclass
class Asked:
    """The name of the signal that asked for an end, if one did, and when."""

    name: str | None = None
    at: float = 0.0


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Inside, the first signal is noted; a later one is a KeyboardInterrupt at once.

    Ctrl-C reaches a process of several twice at the same moment: from the terminal, and from whoever launched it.
    """
    asked = Asked()

    def ask(number: int, _: Any) -> None:
        if asked.name is None:
            asked.name, asked.at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - asked.at > PATIENCE:
            raise KeyboardInterrupt

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: a library user's own business
        old = {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

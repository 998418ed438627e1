"""Asked to stop by a signal, a run ends after the step in progress and is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds within which a second signal is the first one again
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; schedulers, systemd and `timeout`; a terminal that is closed


@dataclass
class Asked:
    """The name of the signal that asked for an end, if one did, and when.

    is_busy: whether something must not be cut short now, which a later signal then does not.
    """

    name: str | None = None
    at: float = 0.0
    is_busy: Callable[[], bool] = lambda: False


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Inside, the first signal is noted; a later one is a KeyboardInterrupt at once, unless something `is_busy`.

    Ctrl-C reaches a process of several twice at the same moment: from the terminal, and from whoever launched it.
    """
    asked = Asked()

    def ask(number: int, _: Any) -> None:
        if asked.name is None:
            asked.name, asked.at = signal.Signals(number).name, time.monotonic()
        elif not asked.is_busy() and time.monotonic() - asked.at > PATIENCE:
            raise KeyboardInterrupt

    old = {}
    try:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup
            old[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: a library user's own business
        old = {}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

"""Signals that ask a run to stop: it ends after the step in progress and is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 1.0  # seconds within which a second signal is the first one again
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; schedulers, systemd and `timeout`; a terminal that is closed


@dataclass
class Asked:
    """A request to stop.

    Attributes:
        name: name of the signal; None as long as no signal came.
        at: time of the signal.
        is_busy: returns True while a second signal must not interrupt.
    """

    name: str | None = None
    at: float = 0.0
    is_busy: Callable[[], bool] = lambda: False


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Note the first signal of a block. A later one is a KeyboardInterrupt at once, unless something `is_busy`.

    Ctrl-C reaches a process of several twice at the same moment: from the terminal, and from its launcher.
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


def ends(names: Sequence[str] = NAMES) -> set[signal.Signals]:
    """Return the signals that ask a process to end, as far as this system has them."""
    return {getattr(signal, name) for name in names if hasattr(signal, name)}


@contextmanager
def held_back(names: Sequence[str] = NAMES) -> Iterator[None]:
    """Deliver these signals after the block. Processes that start inside never get them, unless they ask for it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows does not signal process groups
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends(names))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

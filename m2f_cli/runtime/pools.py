"""Pools of processes that share the work of a command, and that never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

from ..errors import M2FError
from .signals import held_back


class _Spawned(SpawnProcess):
    def start(self) -> None:
        with held_back(("SIGINT",)):  # Ctrl-C while it imports modules would be a traceback; see `join_parent`
            super().start()


class Spawning(SpawnContext):
    """Context of multiprocessing whose processes are left alone by Ctrl-C. Each calls `join_parent` first.

    They are spawned: a fork of a process with threads of PyTorch or OpenCV can hang, and a fork server needs a socket,
    whose name is too long in some folders for temporary files.
    """

    Process = _Spawned  # type: ignore[assignment]


@contextmanager
def process_pool(workers: int, what: str, begin: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes. After an error or Ctrl-C, work that has not begun is cancelled.

    Args:
        what: the work, such as "writes images", for the error message.
        begin: is called in each process at its start.

    Raises:
        M2FError: a process of the pool was killed.
    """
    pool = ProcessPoolExecutor(workers, mp_context=Spawning(), initializer=_begin, initargs=(begin,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise M2FError(
            f"A process that {what} was killed.", hint="If the memory was not enough, pass a smaller --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[[], None] | None) -> None:
    join_parent()
    if begin is not None:
        begin()


def join_parent() -> None:
    """Let the process that started this one decide when it ends: by Ctrl-C, and by its own end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has died. It would wait for work for ever, and might still write files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

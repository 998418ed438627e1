"""Choose as many threads as there are usable cores, and map over threads in order.

Libraries count the cores that they see, but not the share of them that a container may use (`docker --cpus`). Too many
threads wait for each other after every operator, which slows a network down. Nothing here imports PyTorch, because
PyTorch reads the number of threads when it is imported.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TypeVar

In, Out = TypeVar("In"), TypeVar("Out")
CGROUP = Path("/sys/fs/cgroup")
VARIABLE = "OMP_NUM_THREADS"
BUSY = 1.5  # load of each usable core above which fewer threads are advised


def usable_cores() -> int:
    """Return the cores that this process may use.

    These are the cores that it is bound to (taskset, Slurm), and at most its container's share, rounded up.
    """
    seen = visible_cores()
    quota = _quota()
    return seen if quota is None else max(1, min(seen, math.ceil(quota)))


def visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float | None:
    """Return the cores that the container's control group grants; None where it sets no limit or cannot be read."""
    try:
        if (CGROUP / "cpu.max").is_file():  # version 2
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota = (CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return None if quota == "max" or float(quota) <= 0 else float(quota) / float(period)
    except (OSError, ValueError):
        return None


def choose_threads(count: int | None = None) -> None:
    """Let libraries use `count` threads, in this process and in those that it starts.

    Args:
        count: None for the usable cores, where libraries would see more. `OMP_NUM_THREADS` wins if it is set.
    """
    if count is None and (VARIABLE in os.environ or usable_cores() >= visible_cores()):
        return
    count = count or usable_cores()
    os.environ[VARIABLE] = str(count)
    torch = sys.modules.get("torch")
    if torch is not None:  # it has read the variable already
        torch.set_num_threads(count)


@functools.cache
def note_busy_machine() -> None:
    """Log once that other programs keep the cores busy, unless somebody chose the number of threads.

    The number stays as it is: results depend on it in their last digits.
    """
    cores = usable_cores()
    if VARIABLE in os.environ or cores < 2 or not hasattr(os, "getloadavg"):
        return
    load = os.getloadavg()[0]
    if load > BUSY * cores:
        logging.getLogger(__name__).warning(
            f"Other programs keep this machine busy (load {load:.1f} on {cores} cores). Fewer threads are faster then: "
            "m2f --threads 1 …"
        )


def in_order(pool: Executor | None, function: Callable[[In], Out], items: Iterable[In], depth: int) -> Iterator[Out]:
    """Map a function over items in a pool: in their order, with at most `depth` of them on their way.

    Without a pool it is `map`.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""Division of the batch of a step: images that go through the network at once. The rest is accumulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data.loader import Batch
from ..errors import ConfigError, M2FError
from ..runtime import distributed
from . import resume as state
from .loop import losses_of
from .optimizer import train_mode
from .parts import Parts

LARGEST_BY_DEFAULT = 2  # images on each GPU, as published
SHARE = 0.9  # usable share of the memory, because later images may have more objects than those that were tried
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def accumulation(batch: int, world: int, micro_batch: int | None) -> int:
    """Return the number of forward passes per optimiser step.

    Args:
        batch: images of all processes in a step.
        world: number of processes.
        micro_batch: images per forward pass and process. None: at most 2.

    Raises:
        ConfigError: the numbers do not divide.
    """
    own = share_of(batch, world)
    if micro_batch is None:
        micro_batch = next(m for m in range(min(LARGEST_BY_DEFAULT, own), 0, -1) if own % m == 0)
    if own % micro_batch:
        raise ConfigError(
            f"{own} images per process and step are no multiple of the {micro_batch} that go in at once.",
            hint="Change --batch or --micro-batch.",
        )
    return own // micro_batch


def share_of(batch: int, world: int) -> int:
    """Return the number of images of one process in a step.

    Raises:
        ConfigError: the images cannot be shared evenly.
    """
    if batch % world:
        raise ConfigError(f"A batch of {batch} images cannot be shared by {world} processes.", hint="Change --batch.")
    return batch // world


def largest_micro_batch(own: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest divisor of `own` that fits, or None if not even one image fits.

    Divisors are tried in ascending order (1, 2, 4, 8, 16 for 16) until one does not fit.
    """
    largest = None
    for size in (size for size in range(1, own + 1) if own % size == 0):
        if not fits(size):
            break
        largest = size
    return largest


def measured_micro_batch(parts: Parts, own: int, batches: Callable[[int], Iterator[Batch]]) -> int:
    """Return the largest number of images that fit into memory at once. It is the same in all processes.

    A whole step (forward, backward, optimiser) is tried with each size and undone. On CUDA a size fits if memory does
    not run out and at least a tenth of it stays free. A CPU becomes unusable before memory runs out. There a size is
    tried only if the memory of the last one, scaled, is at most nine tenths of the available memory.

    Args:
        parts: parts that are not wrapped for several processes yet. If one process runs out of memory, no other waits.
        own: images of this process in a step.
        batches: function from a size to batches of that size.

    Raises:
        ConfigError: the memory of the device cannot be measured.
        M2FError: not even one image fits.
    """
    memory = memory_of(parts.device)

    def attempt(size: int) -> None:
        one_step(parts, next(batches(size)))

    with state.unchanged(parts):
        train_mode(parts.model, parts.frozen)
        largest = largest_micro_batch(
            own, lambda size: not distributed.any_of_us(not memory.fits(size, attempt), parts.device)
        )
    if largest is None:
        raise M2FError(
            f"Not even one image at a time fits into the memory of {parts.device}.",
            hint="Use --checkpoint-activations, --precision bf16 or a smaller crop.",
        )
    return largest


def one_step(parts: Parts, batch: Batch) -> None:
    """Run a forward pass, a backward pass and an optimiser step in this process alone."""
    parts.optimizer.zero_grad(set_to_none=True)
    batch = batch.to(parts.device)
    num_masks = torch.tensor(float(max(1, sum(map(len, batch.targets)))), device=parts.device)
    parts.scaler.scale(sum(losses_of(parts, batch, num_masks).values())).backward()
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_of(device: torch.device) -> CudaMemory | HostMemory:
    if device.type == "cuda":
        return CudaMemory(device)
    if device.type == "cpu" and (PROC / "self" / "clear_refs").exists():
        return HostMemory()
    raise ConfigError(
        f"--batch auto measures the memory of CUDA GPUs and of CPUs under Linux; this is {device}.",
        hint="Say how many images go in at once: --micro-batch N.",
    )


@dataclass
class CudaMemory:
    device: torch.device

    def fits(self, size: int, attempt: Callable[[int], None]) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        usable = free + torch.cuda.memory_reserved(self.device)
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            return False
        finally:
            peak = torch.cuda.max_memory_reserved(self.device)
            torch.cuda.empty_cache()
        return peak <= SHARE * usable


@dataclass
class HostMemory:
    """Memory of a Linux machine.

    The allocator keeps most freed memory. Memory in use beyond the base is therefore free for the next size.

    Attributes:
        base: bytes in use before the first try.
        needed: bytes beyond the base that the last try needed.
        size: images of the last try.
    """

    base: int = field(default_factory=lambda: in_use())
    needed: int = 0
    size: int = 0

    def fits(self, size: int, attempt: Callable[[int], None]) -> bool:
        usable = available() + in_use() - self.base
        if self.size and self.needed * size / self.size > SHARE * usable:
            return False
        restart_peak()
        attempt(size)
        self.needed, self.size = peak() - self.base, size
        return True


def in_use() -> int:
    """Return the resident bytes of this process."""
    return _bytes(PROC / "self" / "status", "VmRSS:")


def peak() -> int:
    """Return the most resident bytes since `restart_peak`."""
    return _bytes(PROC / "self" / "status", "VmHWM:")


def restart_peak() -> None:
    (PROC / "self" / "clear_refs").write_text("5")  # proc(5): resets VmHWM


def available() -> int:
    """Return the bytes that this process can still allocate, on the machine and in its container (cgroup 2 or 1)."""
    limits = [_bytes(PROC / "meminfo", "MemAvailable:")]
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in (CGROUP, CGROUP / "memory"):
            if (folder / limit).is_file() and (folder / limit).read_text().strip() != "max":
                cached = _bytes(folder / "memory.stat", "inactive_file")
                limits.append(int((folder / limit).read_text()) - int((folder / used).read_text()) + cached)
    return min(limits)


def _bytes(path: Path, key: str) -> int:
    line = [line for line in path.read_text().splitlines() if key in line][-1]  # cgroup 1: the total comes last
    return int(line.split()[1]) * (1024 if line.endswith("kB") else 1)

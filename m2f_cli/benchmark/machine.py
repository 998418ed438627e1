"""Facts and counters of the machine: its names, other load, energy and the speed of matrix products."""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from ..runtime.memory import MIB, PROC
from ..runtime.threads import usable_cores
from .stages import synchronise

RAPL = Path("/sys/class/powercap")
PEAK_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # rows of the square matrices
PEAK_SECONDS, PEAK_TRIES = 1.0, 20
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
ALLOCATOR_SETTINGS = (
    "LD_PRELOAD",
    "MALLOC_",
    "GLIBC_TUNABLES",
    "THP_MEM_ALLOC_ENABLE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)


def describe(device: torch.device) -> dict[str, Any]:
    """Return the facts that a timing depends on. Call it in the timed process."""
    facts = {
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        facts |= {
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "device_mib": total // MIB,
            "device_used_elsewhere_mib": (total - free - own) // MIB,
        }
    return facts


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, such as "NVIDIA H200", or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    path = PROC / "cpuinfo"
    match = re.search(r"^model name\s*:(.*)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


def load_average() -> float | None:
    """Return the load average of the last minute, or None if the system does not have it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def allocator() -> dict[str, Any]:
    """Return the name of this process's memory allocator, and the environment variables that configure it."""
    maps = PROC / "self" / "maps"
    mapped = maps.read_text() if maps.is_file() else ""
    name = next((each for each in ALLOCATORS if each in mapped), None) or platform.libc_ver()[0] or "the system's"
    return {"name": name, "settings": {k: v for k, v in os.environ.items() if k.startswith(ALLOCATOR_SETTINGS)}}


def summary(threads: int, rounds: int) -> str:
    """Return the conditions that a timing depends on, in one line."""
    memory = allocator()
    settings = f" {memory['settings']}" if memory["settings"] else ""
    return (
        f"{cpu_name()}, {threads} threads, {memory['name']}{settings}, torch {torch.__version__}, "
        f"{rounds} rounds, load {load_average()}"
    )


def busy_seconds() -> float | None:
    """Return the seconds of work of all cores since the start of the machine, or None if the system lacks them."""
    path = PROC / "stat"
    if not path.is_file():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- energy -----------------------------------------------------------------------------------------------------------


class Energy:
    """Counter of joules: of the GPU (NVML, with the package pynvml) or of the processor packages (RAPL).

    It includes all other work on that hardware. NVML refreshes its counter every few tens of milliseconds, so only
    sums over many short runs are meaningful.
    """

    def __init__(self, device: torch.device):
        self.source, self._joules = _nvml(device) if device.type == "cuda" else _rapl()

    @property
    def told(self) -> bool:
        """Existence of a counter that can be read."""
        return self._joules is not None

    def joules(self) -> float | None:
        return None if self._joules is None else self._joules()

    def since(self, before: float | None) -> float | None:
        """Return the joules since `joules()` was `before`, or None if unknown or if RAPL's counter overflowed."""
        now = self.joules()
        return None if now is None or before is None or now < before else now - before


def _rapl() -> tuple[str, Any]:
    counters = [
        path
        for path in sorted(RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
        if path.parent.name.count(":") == 1 and os.access(path, os.R_OK)
    ]
    if not counters:
        return "not told", None
    return "RAPL, processor packages", lambda: sum(int(path.read_text()) for path in counters) / 1e6


def _nvml(device: torch.device) -> tuple[str, Any]:
    try:
        import pynvml
    except ImportError:
        return "not told: the package pynvml (nvidia-ml-py) is not installed", None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return f"not told: {error}", None
    return "NVML, the whole GPU", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


# --- matrix products --------------------------------------------------------------------------------------------------


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large square matrix product: the best of at most `PEAK_TRIES` tries in about a second."""
    size = PEAK_SIZE.get(device.type, 2048)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    torch.mm(a, b)
    best, until = float("inf"), time.perf_counter() + PEAK_SECONDS
    for _ in range(PEAK_TRIES):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > until:
            break
    return 2 * size**3 / best

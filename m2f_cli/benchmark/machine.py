"""The machine that is measured on: what it is, what else it does, its memory, its energy, its matrix products."""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from ..runtime.threads import usable_cores
from .stages import synchronise

PROC = Path("/proc")
RAPL = Path("/sys/class/powercap")
MIB = 1 << 20
PEAK_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of the square matrices
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
    """Facts that a timing means nothing without; of the process that is timed."""
    found = {
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
        found |= {
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "device_mib": total // MIB,
            "device_used_elsewhere_mib": (total - free - own) // MIB,
        }
    return found


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200", or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    path = PROC / "cpuinfo"
    found = re.search(r"^model name\s*:(.*)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def load_average() -> float | None:
    """Of the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def allocator() -> dict[str, Any]:
    """Which memory allocator this process has, and the environment that steers it."""
    maps = PROC / "self" / "maps"
    mapped = maps.read_text() if maps.is_file() else ""
    name = next((each for each in ALLOCATORS if each in mapped), None) or platform.libc_ver()[0] or "the system's"
    return {"name": name, "settings": {k: v for k, v in os.environ.items() if k.startswith(ALLOCATOR_SETTINGS)}}


def summary(threads: int, rounds: int) -> str:
    """Return in one line what a timing means nothing without."""
    found = allocator()
    settings = f" {found['settings']}" if found["settings"] else ""
    return (
        f"{cpu_name()}, {threads} threads, {found['name']}{settings}, torch {torch.__version__}, "
        f"{rounds} rounds, load {load_average()}"
    )


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the start of the machine; None where it does not tell."""
    path = PROC / "stat"
    if not path.is_file():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """How far a piece of work raises the memory of this process and of its device; None where that is not told."""

    def __init__(self, device: torch.device):
        self.device = device
        self.start = self._resident("VmRSS:") if self._restart() else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _restart(self) -> bool:
        try:
            (PROC / "self" / "clear_refs").write_text("5")  # proc(5): the peak begins anew
        except OSError:  # no Linux, or a sandbox that forbids it: then growth is "not told", and says so
            return False
        return True

    def _resident(self, key: str) -> int:
        status = (PROC / "self" / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024

    def growth(self) -> dict[str, float | None]:
        """MiB, since this object was made: resident peak of the process, and what that is above its start; the device's
        peak with everything on it."""
        peak = None if self.start is None else self._resident("VmHWM:")
        on_gpu = self.device.type == "cuda"
        return {
            "resident_growth_mib": None if peak is None else (peak - self.start) / MIB,
            "resident_peak_mib": None if peak is None else peak / MIB,
            "device_peak_mib": torch.cuda.max_memory_allocated(self.device) / MIB if on_gpu else None,
            "device_reserved_mib": torch.cuda.max_memory_reserved(self.device) / MIB if on_gpu else None,
        }


# --- energy -----------------------------------------------------------------------------------------------------------


class Energy:
    """A counter of joules: of the GPU (NVML, with the package pynvml) or of the processor packages (RAPL), which count
    whatever else runs there, too. It is `told` only where such a counter can be read.

    NVML's is refreshed every few tens of milliseconds, so only sums over many short runs mean something.
    """

    def __init__(self, device: torch.device):
        self.source, self._joules = _nvml(device) if device.type == "cuda" else _rapl()

    @property
    def told(self) -> bool:
        return self._joules is not None

    def joules(self) -> float | None:
        return None if self._joules is None else self._joules()

    def since(self, before: float | None) -> float | None:
        """Joules since `joules()` was `before`; None too where a counter began anew in between (RAPL's overflow)."""
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
    """FLOP/s of a large square matrix product with the threads that there are: the best of some tries in a second."""
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

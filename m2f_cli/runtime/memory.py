"""Memory that a piece of work takes."""

from __future__ import annotations

from pathlib import Path

import torch

PROC = Path("/proc")
MIB = 1 << 20


class Memory:
    """Counter of the memory that a piece of work adds to this process and its device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.start = self._resident("VmRSS:") if self._restart() else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _restart(self) -> bool:
        try:
            (PROC / "self" / "clear_refs").write_text("5")  # proc(5): resets the peak
        except OSError:  # no Linux, or a sandbox that forbids it: growth is unknown
            return False
        return True

    def _resident(self, key: str) -> int:
        status = (PROC / "self" / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024

    def growth(self) -> dict[str, float | None]:
        """Return the peaks in MiB since this object was made. None: unknown.

        The resident peak of the process comes with its growth over the start. The device's peak includes everything
        on it.
        """
        peak = None if self.start is None else self._resident("VmHWM:")
        on_gpu = self.device.type == "cuda"
        return {
            "resident_growth_mib": None if peak is None else (peak - self.start) / MIB,
            "resident_peak_mib": None if peak is None else peak / MIB,
            "device_peak_mib": torch.cuda.max_memory_allocated(self.device) / MIB if on_gpu else None,
            "device_reserved_mib": torch.cuda.max_memory_reserved(self.device) / MIB if on_gpu else None,
        }

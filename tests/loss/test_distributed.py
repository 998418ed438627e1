"""Two processes with half of the batch each give the gradients of one process with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from loss import worker
from torch.testing import assert_close


def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, Path(worker.__file__)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", tmp_path / "store", tmp_path / "out.pt"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    together = torch.load(tmp_path / "out.pt")
    for name, counts in worker.COUNTS.items():
        alone = worker.gradients(counts, slice(None))
        # The class loss divides by its own weights: as published, halves agree only with equally many targets.
        for kind in ("ce", "mask", "dice") if name == "equal" else ("mask", "dice"):
            # N is the number of all targets by processes, a loss is a sum over the batch by N: the mean of both halves.
            assert alone[kind].abs().max() > 1e-3
            assert_close(together[name][kind], alone[kind], atol=1e-6, rtol=1e-5)

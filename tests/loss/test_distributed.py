"""Two processes with half of the batch each give the gradients of one process with all of it."""

from __future__ import annotations

import os

import pytest
import torch
from loss import worker
from torch.testing import assert_close

# Both processes: the second is a fork of the first, before either has a thread.
BOTH = """
import os, runpy, sys
worker, *arguments = sys.argv[1:]
child = os.fork()
sys.argv[1:] = [str(int(child == 0)), "2", *arguments]
runpy.run_path(worker, run_name="__main__")
if child:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
def test_two_processes_equal_one(tmp_path, fresh):
    done = fresh(BOTH, worker.__file__, tmp_path / "store", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr[-2000:]
    together = torch.load(tmp_path / "out.pt")
    for name, counts in worker.COUNTS.items():
        alone = worker.gradients(counts, slice(None))
        # The class loss divides by its own weights: as published, halves agree only with equally many targets.
        for kind in ("ce", "mask", "dice") if name == "equal" else ("mask", "dice"):
            # N is the number of all targets by processes, a loss is a sum over the batch by N: the mean of both halves.
            assert alone[kind].abs().max() > 1e-3
            assert_close(together[name][kind], alone[kind], atol=1e-6, rtol=1e-5)

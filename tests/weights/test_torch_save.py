"""PyTorch's words for a full disk are understood; an error of another kind is not one of the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from m2f_cli.weights.torch_save import torch_file

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@needs_full
def test_a_full_disk_has_its_own_error_number():
    with pytest.raises(OSError) as caught, torch_file(FULL) as file:
        torch.save({"x": torch.zeros(100_000)}, file)
    assert caught.value.errno == errno.ENOSPC


def test_other_errors_stay(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), torch_file(tmp_path / "x"):
        raise RuntimeError("out of memory")

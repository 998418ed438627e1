"""Runs with evaluations that are killed go on bit by bit: `benchmarks/kill_and_resume.py` in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_operations_on_files(tmp_path):
    """Before a checkpoint, at an evaluation, at a checkpoint, at the end."""
    command = [sys.executable, str(SCRIPT), "--operations", "9", "50", "80", "107", "130"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "5 of 5 bit-identical" in done.stdout, done.stdout + done.stderr

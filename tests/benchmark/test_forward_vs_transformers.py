"""The forward pass beside transformers, as benchmarks/forward_vs_transformers.py measures it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_benchmark_against_transformers():
    """Its speed is read by people, on a quiet machine."""
    command = [sys.executable, str(ROOT / "benchmarks" / "forward_vs_transformers.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = r"^ours +\S+ +\S+ +\S+x +\S+x +\d+ +(?P<memory>[\d.]+) +(?P<classes>\S+) \S+, (?P<masks>\S+) "
    found = re.search(row, done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert float(found["memory"]) <= 0.7, done.stdout
    # One attention cell within rounding of the threshold moves a query by 1e-3.
    assert max(float(found["classes"]), float(found["masks"])) < 5e-3, done.stdout

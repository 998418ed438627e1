"""One process at a time writes a folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from m2f_cli.errors import ConfigError
from m2f_cli.runtime.locks import is_lock, locked

HOLD = "import sys, time; from pathlib import Path; from m2f_cli.runtime.locks import locked\n" \
    "with locked(Path(sys.argv[1]), 'A training'): print('in', flush=True); time.sleep(60)"  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path, holder):
    refused = pytest.raises(ConfigError, match=rf"A training is at work in .* \(process {holder.pid} on ")
    with refused, locked(tmp_path, "A training"):
        pass


def test_a_lock_of_a_killed_process_stops_nobody(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path, "A training"):
        pass


def test_nothing_but_lock_files_stays(tmp_path):
    with locked(tmp_path / "new", "A training"):
        assert str(os.getpid()) in (tmp_path / "new" / ".m2f.lock.json").read_text()
    assert all(is_lock(path) for path in (tmp_path / "new").iterdir())

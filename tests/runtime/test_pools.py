"""Processes that share work end with the one that started them, and their own death is one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2f_cli.errors import M2FError
from m2f_cli.runtime.pools import process_pool

SCRIPT = """
import os, sys, time
from m2f_cli.runtime.pools import process_pool
if __name__ == "__main__":
    with process_pool(2, "works") as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 1000).result()
"""


def test_a_worker_that_dies_is_told_of_in_one_sentence():
    text = r"^A process that writes images was killed. If the memory was not enough, pass a smaller --workers.$"
    with pytest.raises(M2FError, match=text), process_pool(1, "writes images") as pool:
        pool.submit(os.abort).result()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_worker_outlives_a_command_that_is_killed(tmp_path):
    """It would wait for work for ever, and one in the middle of a file would write it beside the next run."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    worker = int(parent.stdout.readline())
    assert runs(worker)
    parent.kill()
    parent.communicate()
    while runs(worker):
        time.sleep(0.1)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


INTERRUPTED = """
import os, signal, sys, time
from m2f_cli.runtime.pools import process_pool
if __name__ == "__main__":
    with process_pool(2, "works") as pool:
        asked = pool.submit(os.getpid)
        try:
            print("begun", flush=True)
            while True:  # one long sleep would miss a signal that comes just before it
                time.sleep(0.01)
        except KeyboardInterrupt:
            print("told", asked.result() > 0, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows does not signal process groups")
def test_workers_that_still_import_modules_say_nothing_at_ctrl_c(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    assert parent.stdout.readline() == "begun\n"
    os.killpg(parent.pid, signal.SIGINT)
    said, errors = parent.communicate(timeout=60)
    assert (said, errors, parent.returncode) == ("told True\n", "", 0)

"""Clusters that `ray start` starts on this machine: a port for them, and their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path


def free_port():
    """Return a port that is free now, and below those that Ray gives to its workers."""
    for port in range(6400, 9000):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no port is free")


def end_session(first: subprocess.Popen) -> None:
    """Let a process end by itself, and kill what is left of its session: `ray stop` would end others, too."""
    first.terminate()
    try:
        first.wait(30)
    except subprocess.TimeoutExpired:
        first.kill()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(path.read_text().rpartition(")")[2].split()[3])
            if session == first.pid:
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:  # it has ended
            continue
    first.wait()

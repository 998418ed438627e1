"""moto's S3 server as a process of its own on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server():
    """Yield the address of a server without buckets; the variables of the environment that lead there are `settings`.

    The test is skipped where moto or s3fs is not installed.
    """
    for package in ("moto.server", "s3fs"):
        pytest.importorskip(package, reason=f"needs {package} (extra test)")
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise RuntimeError(f"moto's server does not start: {''.join(lines)}")
        # A line for each request: the server would wait once nobody reads them and the pipe is full.
        threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
        yield found[0]
    finally:
        process.kill()
        process.wait()


def settings(address):
    """Return the variables that lead fsspec and botocore to a server on loopback."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_SECRET_ACCESS_KEY": "verysecretkey",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }

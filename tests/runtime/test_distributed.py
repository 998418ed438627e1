"""A process of a group that is lost: the others end, and say so in one sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from m2f_cli.errors import ConfigError
from m2f_cli.runtime import distributed
from m2f_cli.runtime.distributed import is_of_group

SCRIPT = """
import os, torch
from m2f_cli.errors import M2FError
from m2f_cli.runtime import distributed
try:
    with distributed.group(torch.device("cpu")):
        distributed.gather(1)
        if distributed.rank() == LOST:
            os._exit(9)
        distributed.any_of_us(False, torch.device("cpu"))
except M2FError as error:
    print(error)
"""
SENTENCE = "Another process of this command has ended, or cannot be reached. Its own message says why; then start all"


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_process_that_is_left_says_what_happened(lost):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    where["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT.replace("LOST", str(lost))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **where, "RANK": str(rank)})
        for rank in range(2)
    ]
    texts = [process.communicate()[0] for process in both]
    assert both[lost].returncode == 9 and both[1 - lost].returncode == 0
    assert texts[1 - lost].startswith(SENTENCE)


def test_other_errors_are_not_taken_for_a_lost_process():
    assert not is_of_group(RuntimeError("CUDA out of memory"))
    assert not is_of_group(ValueError("gloo"))
    assert is_of_group(dist.DistNetworkError("timed out"))


def test_machines_that_torchrun_could_not_start_again_are_refused_at_the_beginning(monkeypatch):
    variables = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="addresses of processes that are gone.*TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        distributed.group(torch.device("cpu")),
    ):
        pass

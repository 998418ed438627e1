"""Jobs that start the same command again after a failure: their own run goes on without `--resume`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..config.run_folder import CONFIG, ENVIRONMENT
from .options import read_environment


def job() -> dict[str, str]:
    """Return the names of the jobs that this process is a part of, by what runs them. env.json keeps them.

    The keys are "M2F_JOB" (the user's own name), "slurm" and "torchrun".
    """
    names = {"M2F_JOB": os.environ.get("M2F_JOB"), "slurm": _slurm_job(), "torchrun": _torchrun_job()}
    return {key: name for key, name in names.items() if name}


def is_restarted(folder: Path, command: Sequence[str]) -> bool:
    """Return True if the run in a folder was begun by an earlier start of the present job, with the same command.

    A start counts as a later one if torchrun (`--max-restarts`) or Slurm (a requeued job) says so. Each start does with
    a name that the user gave: M2F_JOB, or torchrun's `--rdzv-id` for several machines, which count their own starts.

    Args:
        folder: folder of the run. It need not exist.
        command: command line of the user.

    Raises:
        ConfigError: env.json of the folder is damaged.
    """
    again = {
        "M2F_JOB": "M2F_JOB" in os.environ,
        "slurm": _count("SLURM_RESTART_COUNT") > 0,
        "torchrun": not _is_one_machine() or _count("TORCHELASTIC_RESTART_COUNT") > 0,
    }
    present = {key: name for key, name in job().items() if again[key]}
    if not present or not (folder / CONFIG).is_file():
        return False
    before = read_environment(folder / ENVIRONMENT)
    of_run = before.get("job")
    is_own = isinstance(of_run, dict) and any(of_run.get(key) == name for key, name in present.items())
    return is_own and before.get("command") == list(command)


def _slurm_job() -> str | None:
    """Return the number of the Slurm job, which a requeued job keeps. Several clusters may share a file system."""
    number = os.environ.get("SLURM_JOB_ID")
    return number and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{number}"


def _torchrun_job() -> str | None:
    """Return the name of the job of torchrun: on one machine its folder of logs, otherwise `--rdzv-id`.

    The folder is new in each call of torchrun, where users may repeat an identity. Machines have a folder each.
    """
    if _is_one_machine():
        return os.environ.get("TORCHELASTIC_ERROR_FILE", "").partition("attempt_")[0] or None
    number = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if number == "none" else number  # torchrun's word for no identity


def _is_one_machine() -> bool:
    return os.environ.get("GROUP_WORLD_SIZE", "1") == "1"


def _count(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0

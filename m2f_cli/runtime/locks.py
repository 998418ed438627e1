"""A folder that one process at a time may write."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .files import make_folder, writing_to

LOCK = ".m2f.lock"  # lies in a folder while a process writes there, and holds who it is


def is_lock(path: Path) -> bool:
    """Return True for the files by which a folder is locked: they do not make it a used one."""
    return path.name.startswith(LOCK)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made where it is missing.

    The operating system lets go of the lock when its process dies, so a lock that was left behind stops nobody.

    Args:
        what: what is done there, such as "A training", for the sentence that refuses the second process.

    Raises:
        ConfigError: another process is at work there; its number and machine are in the message.
        M2FError: the folder cannot be written.
    """
    import filelock  # only here: commands that lock nothing do not import it

    make_folder(folder)
    path = folder / LOCK
    lock = filelock.FileLock(path, timeout=0, mode=0o666)
    with writing_to(path):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise ConfigError(
                f"{what} is at work in {folder} already ({_owner(path)}).",
                hint="Wait until it has ended, stop it, or choose another --out.",
            ) from error
    try:
        with writing_to(path):
            _owner_file(path).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                                                     "since": time.strftime("%Y-%m-%d %H:%M:%S")}))  # fmt: skip
        yield
    finally:
        _owner_file(path).unlink(missing_ok=True)
        lock.release()  # the empty file stays: a process that has it open already must not lock another one


def _owner_file(path: Path) -> Path:
    """Beside the lock itself, which Windows lets nobody else read."""
    return path.with_name(f"{path.name}.json")


def _owner(path: Path) -> str:
    try:
        owner = json.loads(_owner_file(path).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"

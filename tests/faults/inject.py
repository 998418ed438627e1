"""Faults inside of the process under test: before its n-th operation on a file, something breaks.

An operation is what Python reports to an audit hook (opening for writing, renaming, removing, making a folder or a
link, cutting off), and `os.fsync`. Only operations below one folder and of the main process count.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
TAKING_SPACE = ("open", "os.mkdir", "os.link", "os.symlink", "os.fsync")
READ_ONLY = (errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Injection:
    """What breaks, and when.

    Attributes:
        action: "kill" (SIGKILL), "cut" (death in the middle of the first write beyond `value` bytes of a file), "short"
            (such a write fails), "fail" (the operation and those after it fail with the error number `value`), "once"
            (only that one fails), "vanish" (the file `path` moves away), "worker" (a process that reads images raises
            an error as soon as it opens `path`), "worker-killed" (it dies there). "" only counts.
        at: number of the operation, from 0.
    """

    action: str = ""
    at: int = 0
    value: int = 0
    path: str = ""


class Injector:
    """The audit hook.

    Args:
        folder: the folder below which operations count.
    """

    def __init__(self, injection: Injection, folder: Path):
        self.injection, self.folder, self.own = injection, str(folder), os.getpid()
        self.operations = 0
        self.is_broken = self.is_inside = False

    def install(self) -> None:
        if self.injection.action == "cut":  # otherwise Python ignores it, and the write fails
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        real = os.fsync

        def fsync(file: Any) -> None:
            self.operation("os.fsync", os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
            real(file)

        os.fsync = fsync
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple) -> None:
        if self.is_inside:
            return
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            if self.injection.path and os.fsdecode(path).endswith(self.injection.path):
                self.reading()
            changes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & (os.O_RDWR | 1)
            if changes:
                self.operation(event, os.fsdecode(path))
        elif event in CHANGING:
            self.operation(event, os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")

    def reading(self) -> None:
        """Break a process that reads images."""
        if os.getpid() == self.own:
            return
        if self.injection.action == "worker":
            raise RuntimeError("an error of a worker")
        if self.injection.action == "worker-killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def operation(self, event: str, path: str) -> None:
        if os.getpid() != self.own or not os.path.abspath(path).startswith(self.folder):
            return
        number, self.operations = self.operations, self.operations + 1
        if number == self.injection.at:
            self.is_inside = True
            self.begin()
            self.is_inside = False
        if self.is_broken and (event in TAKING_SPACE or self.injection.value in READ_ONLY):
            self.is_broken = self.injection.action == "fail"
            raise OSError(self.injection.value, os.strerror(self.injection.value), path)

    def begin(self) -> None:
        action, value = self.injection.action, self.injection.value
        if action == "kill":
            os.kill(self.own, signal.SIGKILL)
        elif action in ("cut", "short"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (value, value))
        elif action in ("fail", "once"):
            self.is_broken = True
        elif action == "vanish":
            os.replace(self.injection.path, self.injection.path + ".gone")

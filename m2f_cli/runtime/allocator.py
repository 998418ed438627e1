"""Keep freed memory in the process instead of returning it to the system (glibc only).

By default, glibc maps each large tensor anew, and the system fills its pages with zeros first. Kept memory saves that
time, and costs a higher peak of memory at large sizes; docs/development/performance.md has figures. The setting applies
to a whole process. Only the command line makes it: because of --keep-memory, or for the commands in `KEEPING`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys

from ..errors import ConfigError

KEEPING = ("predict", "eval")  # commands that see images of a few sizes again and again

# mallopt(3): parameter number, and the environment variable that sets it at the start of a process
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
}


def is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def is_kept_by(command: str | None) -> bool:
    """Return True if a command keeps memory by default."""
    return command in KEEPING and is_glibc()


def keep_memory() -> None:
    """Let this process, and those that it starts, keep freed memory for later use.

    Raises:
        ConfigError: the C library is not glibc, or refuses the setting (glibc before 2.35).
    """
    if not is_glibc():
        raise ConfigError(
            f"--keep-memory is a setting of glibc, which {platform.system()} here does not use.", hint="Leave it out."
        )
    mallopt = ctypes.CDLL(None).mallopt
    for name, (parameter, value) in SETTINGS.items():
        if not mallopt(parameter, value):
            raise ConfigError(f"--keep-memory: the C library refused {name} = {value}.", hint="Leave it out.")
    os.environ.update({name: str(value) for name, (_, value) in SETTINGS.items()})


def keep_memory_if_possible() -> None:
    """Keep freed memory where that is possible. Otherwise nothing changes but speed; `m2f doctor` reports it."""
    with contextlib.suppress(ConfigError):
        keep_memory()


def can_keep_memory() -> bool:
    """Return True if the C library would keep memory. This process stays as it is."""
    code = f"import ctypes; print(all(ctypes.CDLL(None).mallopt(*each) for each in {list(SETTINGS.values())}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return is_glibc() and found.stdout.strip() == "True"

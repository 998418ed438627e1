"""Keep freed memory instead of giving it back to the system (glibc): no page is faulted in twice.

The C library maps every large tensor anew, and the system fills each of its pages with zeros first. On a CPU that is a
tenth of a forward pass at 800 x 1088 and a sixth at 2048 x 2048; the price is memory that stays with the process, and a
higher peak at large sizes (the same at 800 x 1088, half as much again at 2048 x 2048). It concerns a whole process, so
nothing but a command line's own one calls this: because of --keep-memory, or for the commands in `KEEPING`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys

from ..errors import ConfigError

KEEPING = ("predict", "eval")  # pictures of a few sizes, over and over; --no-keep-memory leaves them as others are

# mallopt(3): parameter number, and the environment variable that sets it at the start of a process
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
}


def is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def is_kept_by(command: str | None) -> bool:
    """Whether a command keeps memory when nobody says otherwise."""
    return command in KEEPING and is_glibc()


def keep_memory() -> None:
    """From now on, in this process and in those that it starts.

    Raises:
        ConfigError: the C library is not glibc, or refuses (glibc before 2.35 knows no such threshold).
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
    """The same where nobody asked for it: without, results are the same, a little later. `m2f doctor` tells."""
    with contextlib.suppress(ConfigError):
        keep_memory()


def can_keep_memory() -> bool:
    """Whether the C library would; this process stays as it is."""
    code = f"import ctypes; print(all(ctypes.CDLL(None).mallopt(*each) for each in {list(SETTINGS.values())}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return is_glibc() and found.stdout.strip() == "True"

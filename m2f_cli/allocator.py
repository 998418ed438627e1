"""Keep freed memory instead of giving it back to the system (glibc): no page is faulted in twice.

The C library maps every large tensor anew, and the system fills each of its pages with zeros first. On a CPU that is a
tenth of a forward pass at 512 x 1024 and a third at 2048 x 2048; the price is memory that stays with the process. It
concerns the whole process, so nothing but the command line's --keep-memory calls this.
"""

from __future__ import annotations

import ctypes
import os
import platform

from .errors import ConfigError

# mallopt(3): parameter number, and the environment variable that sets it at the start of a process
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
}


def keep_memory() -> None:
    """From now on, in this process and in those that it starts.

    Raises:
        ConfigError: the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        raise ConfigError(
            f"--keep-memory is a setting of glibc, which {platform.system()} here does not use.", hint="Leave it out."
        )
    mallopt = ctypes.CDLL(None).mallopt
    for name, (parameter, value) in SETTINGS.items():
        if not mallopt(parameter, value):
            raise ConfigError(f"--keep-memory: the C library refused {name} = {value}.", hint="Leave it out.")
        os.environ[name] = str(value)

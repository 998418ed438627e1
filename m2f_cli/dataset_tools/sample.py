"""Small annotated data sets that are shipped with the package, copied to a folder of the user's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ConfigError, unknown_name
from ..runtime.files import writing_to
from ..runtime.locks import is_lock, staged

SAMPLES = Path(__file__).parent / "samples"


def sample_names() -> tuple[str, ...]:
    """Return the names of the data sets, one for each folder of `samples`."""
    return tuple(sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()))


def copy_sample(name: str, out: Path) -> int:
    """Copy a data set to a new or empty folder, whole or not at all.

    Returns:
        the number of files.

    Raises:
        ConfigError: no data set has this name, or the folder is in use or not empty.
        M2FError: the folder cannot be written.
    """
    if name not in sample_names():
        raise unknown_name("sample", name, sample_names())
    if os.path.lexists(out) and not (out.is_dir() and all(is_lock(path) for path in out.iterdir())):
        raise ConfigError(f"{out} exists already and is no empty folder.", hint="Choose another --out.")
    with staged(out, "A copy of a sample") as room, writing_to(out):
        shutil.copytree(SAMPLES / name, room / name, copy_function=shutil.copyfile)
        if out.is_dir():
            out.rmdir()
        os.replace(room / name, out)
    return sum(path.is_file() for path in out.rglob("*"))

"""Words that a shell completes: names of parts, presets, class tables and runs. Nothing heavy is imported."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import plugins, structures
from ..config import shipped

RUNS, CONFIG = Path("runs"), "config.yaml"
DEPTHS = (f"*/{CONFIG}", f"*/*/{CONFIG}")  # runs/mine, and runs/train/PRESET, which is the default


def complete(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes a name, or the last of several between commas."""

    def matching(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return matching


def words(*known: str) -> Callable[[str], list[str]]:
    return complete(lambda: known)


def parts(*groups: str) -> Callable[[str], list[str]]:
    """Complete the names of groups of `plugins.py`."""
    return complete(lambda: [name for group in groups for name in plugins.names(group)])


def runs() -> list[Path]:
    """Return the folders of trainings below this folder, the newest first."""
    found = {file: file.stat().st_mtime for depth in DEPTHS for file in RUNS.glob(depth)}
    return [file.parent for file in sorted(found, key=lambda file: found[file], reverse=True)]


def run_names() -> list[str]:
    return [folder.as_posix() for folder in runs()]


presets = complete(shipped.preset_names)
models = complete(lambda: [*run_names(), *shipped.preset_names()])
folders = complete(run_names)


def directories(incomplete: str) -> list[str]:
    """Complete the name of a folder of this machine."""
    return sorted(glob.glob(f"{glob.escape(incomplete)}*/"))


class_tables = complete(lambda: sorted(path.stem for path in (_structures() / "classes").glob("*.yaml")))


def _structures() -> Path:
    return Path(structures.__path__[0])

"""The files of the presets that ship with m2f. Nothing heavy is imported: a shell completes their names."""

from __future__ import annotations

import functools
from pathlib import Path


def presets_dir() -> Path:
    """Return the folder of the shipped presets: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "presets"
    return inside if inside.is_dir() else here.parent / "presets"


@functools.cache
def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped presets, sorted. Recipes and backbones are no presets."""
    return tuple(sorted(path.stem for path in presets_dir().glob("*.yaml")))

"""The shipped presets, each read once per process."""

from __future__ import annotations

import functools

import pytest

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config

shipped = functools.cache(config.load)


def read_once(patch: pytest.MonkeyPatch) -> None:
    """Let the package read each preset once, too."""
    real = config.load

    def load(name: str, overrides=()) -> Config:
        return real(name, overrides) if overrides or name not in config.preset_names() else shipped(name)

    patch.setattr(config, "load", load)

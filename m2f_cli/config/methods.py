"""Methods by the name that a configuration gives them: how they are called, and their paper or code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from ..runtime import documents
from .shipped import presets_dir


class Method(NamedTuple):
    """Name of a method for people, and the address of its paper, or of its code where no paper has one."""

    title: str
    source: str


@functools.cache
def methods() -> Mapping[str, Method]:
    """Return the methods of presets/methods/table.yaml, in its order.

    Raises:
        ConfigError: the file is not there, or is no YAML.
    """
    table = documents.read_yaml(presets_dir() / "methods" / "table.yaml")
    return {name: Method(**row) for name, row in table.items()}

"""Size and version of an object."""

from __future__ import annotations

from typing import NamedTuple


class Info(NamedTuple):
    """Size and version of an object, as far as its store states them.

    Attributes:
        size: bytes.
        version: entity tag, generation or time; another one means that the object was written again.
    """

    size: int | None = None
    version: str | None = None

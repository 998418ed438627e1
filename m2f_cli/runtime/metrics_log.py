"""Reading of a log of numbers over iterations: JSON lines of {"kind", "iteration", name: number, …}."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .jsonl import parsed_lines

MOST_DRAWN = 1e30  # a value beyond is no part of a curve; NaN and infinity are none either


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log in their order.

    Raises:
        DataError: a line is damaged, or the file cannot be read.
    """
    lines = parsed_lines(path, "Copy the file again, or remove that line: only curves and model cards need it.")
    return [entry for _, entry in lines if isinstance(entry, dict)]


def names_of(entries: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Return the names of the numbers of a kind, as its last entry has them."""
    last = next((entry for entry in reversed(entries) if entry.get("kind") == kind), {})
    return [name for name in last if name not in ("kind", "iteration")]


def points_of(entries: Sequence[dict[str, Any]], kind: str, name: str) -> list[tuple[float, float]]:
    """Return iterations and values, as far as they are numbers: the file may be anybody's."""
    points = [(entry.get("iteration"), entry.get(name)) for entry in entries if entry.get("kind") == kind]
    return [(float(x), float(y)) for x, y in points if _is_drawn(x) and _is_drawn(y)]


def _is_drawn(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < MOST_DRAWN

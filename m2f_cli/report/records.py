"""Values of documents that may be anybody's, taken as far as they have the expected form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_LISTED = 12


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is; an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """Return a list as it is; an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def row(value: Any, layout: Any) -> dict[str, Any]:
    """Return the values of a record by all keys of its layout (a TypedDict); None where a value is missing."""
    tree = mapping(value)
    return {key: tree.get(key) for key in layout.__annotations__}


def flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a tree as text, with the keys that lead to them. Those that are empty are left out.

    Of a list longer than `MOST_LISTED`, the first values and their number are told.
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        elif value not in (None, [], {}):
            yield f"{before}{key}", _listing(value) if isinstance(value, list) else str(value)


def _listing(values: list[Any]) -> str:
    text = ", ".join(map(str, values[:MOST_LISTED]))
    return text if len(values) <= MOST_LISTED else f"{text}, … ({len(values)} in all)"

"""Names of classes on images: COCO's without their tails, and those that a user typed found again."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence

from ..errors import unknown_name
from ..structures.categories import Categories, load_categories

_TAIL = re.compile(r"(-other)?-merged$|-other$|-stuff$")
_TABLES = ("coco-panoptic", "coco-stuff-10k")


@functools.cache
def _with_tails() -> frozenset[str]:
    """Return the names of COCO that end in -merged, -other or -stuff."""
    return frozenset(each.name for table in _TABLES for each in load_categories(table) if _TAIL.search(each.name))


def short_name(name: str, others: Collection[str]) -> str:
    """Return the name of a class as it is drawn: COCO's names lose "-merged", "-other" and "-stuff".

    Args:
        name: the name in the data.
        others: names of all classes. A tail stays if another class has the name without it.
    """
    tail = _TAIL.search(name)
    if tail is None or name not in _with_tails():
        return name
    short = name[: tail.start()]
    return name if short in others else short


def numbers_of(typed: Sequence[str], categories: Categories) -> frozenset[int]:
    """Return the numbers of the classes that texts name.

    Args:
        typed: names as in the data or as on images; a text that is no name holds several between commas.
        categories: the classes.

    Raises:
        ConfigError: a name is unknown; the hint has the nearest ones.
    """
    if not typed:
        return frozenset()
    names = {category.name for category in categories}
    numbers: dict[str, set[int]] = {}
    for number, category in enumerate(categories):
        for name in {category.name, short_name(category.name, names)}:
            numbers.setdefault(name, set()).add(number)
    found: set[int] = set()
    for text in typed:
        parts = [text] if text in numbers else [part.strip() for part in text.split(",")]
        for name in parts:
            if name not in numbers:
                raise unknown_name("class", name, names)
            found |= numbers[name]
    return frozenset(found)

"""Mapping of the categories in a data set's own files to class numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.presets import read_yaml
from ...errors import ConfigError, DataError
from ...runtime import documents
from ...structures import schemas
from ...structures.categories import (
    TEXTS,
    Categories,
    Category,
    ClassTable,
    default_color,
    from_names,
    load_categories,
    load_class_table,
)

_SHOWN = 5


@dataclass(frozen=True)
class ClassMap:
    """Class numbers of a data set's categories.

    Attributes:
        categories: the classes. A class number is a position in this tuple.
        numbers: class number of each category id of the data.
        dropped: ids of categories of the data that are not a class here.
        notes: remarks for the user.
    """

    categories: Categories
    numbers: Mapping[int, int]
    dropped: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def number(self, category_id: Any, where: str) -> int | None:
        """Return the class number of an id, or None if its category is not a class here.

        Raises:
            DataError: no category has this id.
        """
        # Only ints are looked up: a list, which is not hashable, would raise a TypeError.
        if type(category_id) is int:
            if category_id in self.numbers:
                return self.numbers[category_id]
            if category_id in self.dropped:
                return None
        known = sorted({*self.numbers, *self.dropped})
        raise DataError(
            f"{where} has the category_id {schemas.shown(category_id)}; the {len(known)} categories have ids "
            f"from {known[0]} to {known[-1]}.",
            hint="Add the category, or correct the annotation.",
        )

    def labels(self, category_ids: Iterable[Any]) -> tuple[int, ...]:
        """Return the class numbers of ids, ascending, without repeats. Ids that are not a class are left out."""
        known = set(map(id_or_none, category_ids)) & self.numbers.keys()
        return tuple(sorted({self.numbers[key] for key in known}))

    def without_stuff(self) -> ClassMap:
        """Return the things alone, numbered from 0 on."""
        kept = [number for number, category in enumerate(self.categories) if category.isthing]
        renumbered = {old: new for new, old in enumerate(kept)}
        numbers = {key: renumbered[old] for key, old in self.numbers.items() if old in renumbered}
        dropped = self.dropped | (self.numbers.keys() - numbers.keys())
        return ClassMap(tuple(self.categories[old] for old in kept), numbers, dropped, self.notes)


def parse_categories(rows: list[Any], path: Path, *, isthing: bool | None = None) -> Categories:
    """Return the categories of a COCO JSON, in the order of their ids.

    Args:
        isthing: value for a category that does not state it. None refuses such a category.

    Raises:
        DataError: a category lacks id, name or (if required) isthing, or two categories share an id or name.
    """
    categories = [_parse_category(row, path, isthing) for row in rows]
    for key in ("id", "name"):
        repeated, count = (
            Counter(getattr(category, key) for category in categories).most_common(1)[0] if categories else ("", 0)
        )
        if count > 1:
            raise DataError(f"{path}: two categories have the {key} {repeated!r}.", hint="Merge or rename them.")
    if not categories:
        raise DataError(f"{path} has no categories.")
    ordered = sorted(categories, key=lambda category: category.id)
    return tuple(
        category if category.color else dataclasses.replace(category, color=default_color(number))
        for number, category in enumerate(ordered)
    )


def _parse_category(row: Any, path: Path, isthing: bool | None) -> Category:
    said = schemas.read_as(schemas.CocoCategory, row, f"{path}: a category")
    thing = isthing if said.isthing is None else said.isthing
    if thing is None:
        raise DataError(f"{path}: the category {said.name!r} does not say `isthing`.", hint="Add 1 or 0 to each.")
    return Category(said.id, said.name, thing, said.color)


def is_crowd(value: Any) -> bool:
    """Return True if the flag `iscrowd` is set or cannot be read.

    An unreadable flag is refused when its image is read.
    """
    if type(value) is int:
        return value != 0
    try:
        return value is not None and schemas.flag(value)
    except ValueError:
        return True


def id_or_none(value: Any) -> int | None:
    if type(value) is int:
        return value
    try:
        return schemas.whole_number(value)
    except ValueError:
        return None


def map_classes(own: Categories, classes: str | Path | None, where: Path) -> ClassMap:
    """Number the data's own categories, or those of the class table that the user named.

    The classes of a table are matched by name if all names of one side are on the other. Otherwise they are matched by
    id in the same way.

    Raises:
        ConfigError: the table is unknown or broken.
        DataError: the table describes other classes.
    """
    if classes is None:
        return ClassMap(own, {category.id: number for number, category in enumerate(own)})
    table = load_categories(classes)
    for key in ("name", "id"):
        there = {getattr(category, key): number for number, category in enumerate(table)}
        here = {getattr(category, key): category.id for category in own}
        if here.keys() <= there.keys() or there.keys() <= here.keys():
            numbers = {own_id: there[value] for value, own_id in here.items() if value in there}
            dropped = frozenset(category.id for category in own) - numbers.keys()
            notes = (f"{len(dropped)} categories are no class of {classes}: their regions are left out",)
            return ClassMap(table, numbers, dropped, notes if dropped else ())
    strange = [category.name for category in own if category.name not in {c.name for c in table}]
    raise DataError(
        f"The {len(own)} categories of {where} are not those of the class table {classes}: it has no "
        f"{', '.join(map(repr, strange[:_SHOWN]))}{' …' if len(strange) > _SHOWN else ''}.",
        hint="Leave the class table (--classes) out to take the data's own categories, or name another table.",
    )


def read_class_file(path: Path) -> ClassTable:
    """Read the classes that lie beside label maps.

    classes.txt has a name per line. classes.yaml is either a class table (`classes:`), or has `names:` (a list, or
    position to name) and optionally `colors:` and `ignore_index:`.

    Raises:
        ConfigError: the file is unreadable or contradicts itself.
    """
    if path.suffix == ".txt":
        return ClassTable(path.parent.name, str(path), 255, _as_stuff(from_names(class_names(path), where=path)))
    tree = read_yaml(path, texts=TEXTS)
    if "names" not in tree:
        return load_class_table(path)
    said = schemas.read_as(schemas.NamedClasses, tree, str(path), error=ConfigError, hint=None)
    categories = _as_stuff(from_names(listed_names(said.names, path), where=path))
    if said.colors is not None:
        colors = listed(said.colors, "colors", path)
        categories = tuple(
            dataclasses.replace(category, color=_color(value, path))
            for category, value in zip(categories, colors, strict=False)
        )
    if said.num_classes not in (None, len(categories)):
        raise ConfigError(f"{path}: num_classes = {said.num_classes}, but there are {len(categories)} names.")
    return ClassTable(path.parent.name, str(path), said.ignore_index, categories)


def _color(value: Any, path: Path) -> tuple[int, int, int]:
    try:
        return schemas.color(value)
    except ValueError as reason:
        raise ConfigError(f"{path}: a color is {schemas.shown(value)}, which should be {reason}.") from reason


def class_names(path: Path) -> list[str]:
    """Return the names in a text file, one per line.

    Raises:
        ConfigError: the file is unreadable, not in UTF-8, or without a name.
    """
    names = [line.strip() for line in documents.read_lines(path, error=ConfigError) if line.strip()]
    if not names:
        raise ConfigError(f"{path} names no class.", hint="Write one name per line.")
    return names


def listed_names(values: Any, path: Path) -> list[str]:
    """Return texts as a list; see `listed`.

    Raises:
        ConfigError: the value is not a list, or one of its entries is not text.
    """
    names = listed(values, "names", path)
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{path}: the name of class {position} is {schemas.shown(name)}, which should be text.")
    return names


def _as_stuff(categories: Categories) -> Categories:
    return tuple(dataclasses.replace(category, isthing=False) for category in categories)


def listed(values: Any, key: str, path: Path) -> list[Any]:
    """Return a list, or a mapping of the positions 0, 1, … to values, as a list.

    Raises:
        ConfigError: the value is neither.
    """
    if isinstance(values, dict):
        by_position = {id_or_none(position): value for position, value in values.items()}
        complete = by_position.keys() == set(range(len(values)))
        values = [by_position[position] for position in range(len(by_position))] if complete else None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: {key} should be a list, or a mapping of 0, 1, 2, … without gaps.")
    return values

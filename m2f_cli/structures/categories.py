"""Class tables: what a data set's classes are called, which of them are countable, and their colours.

The shipped tables are YAML files in `classes/`, one class a line; a user's own table is a file of the same form, where
only `name` is needed: `id` is then the position, `isthing` true, and the colour one of `default_color`.
"""

from __future__ import annotations

import colorsys
import functools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..config.presets import read_yaml
from ..errors import ConfigError, unknown_name
from . import schemas

TEXTS = ("name", "names", "classes")  # keys of YAML below which names stand: text as it is written
_FOLDER = Path(__file__).parent / "classes"
_GOLDEN = (5**0.5 - 1) / 2
_STRENGTHS = ((0.65, 0.65), (1.0, 0.95), (0.85, 0.8), (0.5, 1.0), (0.65, 0.95))  # (saturation, value)


@dataclass(frozen=True)
class ClassTable:
    """A data set's classes. `ignore_index` is the value of pixels without a class in its semantic labels."""

    dataset: str
    source: str
    ignore_index: int
    categories: Categories


def class_tables() -> list[str]:
    """Return the names of the shipped tables."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_categories(name_or_path: str | Path) -> Categories:
    """Return the classes of a table, in the order of their class numbers.

    Args:
        name_or_path: the name of a shipped table, or a path that ends in .yaml or .yml.

    Raises:
        ConfigError: unknown name (with the nearest ones), unreadable file, or a table that contradicts itself.
    """
    return load_class_table(name_or_path).categories


@functools.cache
def load_class_table(name_or_path: str | Path) -> ClassTable:
    """Return a table with all that it says of its data set. It is read once per process."""
    path = _table_path(name_or_path)
    tree = read_yaml(path, texts=TEXTS)
    entries = tree.get("classes")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: `classes` should be a list of classes.")
    ignore_index = _ignore_index(tree.get("ignore_index", 255), path)
    categories = tuple(_category(entry, position, path) for position, entry in enumerate(entries))
    _refuse_twins([c.id for c in categories], "id", path)
    _refuse_twins([c.name for c in categories], "name", path)
    return ClassTable(str(tree.get("dataset", path.stem)), str(tree.get("source", "")), ignore_index, categories)


def from_names(
    names: Sequence[str], things: Collection[str] | None = None, *, where: Any = "the list of class names"
) -> Categories:
    """Return classes from their names alone: ids 0, 1, … and default colours.

    Args:
        things: the countable ones among `names`; None means all of them.
        where: the file that they are from, for messages.

    Raises:
        ConfigError: a name twice or that no file can hold, or a thing that is not among the names.
    """
    halved = next((name for name in names if not schemas.is_whole(name)), None)
    if halved is not None:
        raise ConfigError(f"{where}: the class name {halved!r} holds half a character, which no file can hold.")
    _refuse_twins(list(names), "name", where)
    for thing in things or ():
        if thing not in names:
            raise unknown_name("class", thing, names)
    return tuple(
        Category(index, name, isthing=things is None or name in things, color=default_color(index))
        for index, name in enumerate(names)
    )


def default_color(index: int) -> tuple[int, int, int]:
    """The colour (RGB, 0 to 255) of the class number `index` when nobody chose one: always the same, never near black.

    The hue turns by the golden angle from class to class. Hues come close again after a Fibonacci number of classes, so
    the strength changes with a period of five: the first 40 colours keep 25 grey levels of distance from each other.
    """
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, *_STRENGTHS[index % len(_STRENGTHS)])
    return round(255 * red), round(255 * green), round(255 * blue)


def _table_path(name_or_path: str | Path) -> Path:
    if str(name_or_path).endswith((".yaml", ".yml")):
        return Path(name_or_path)
    if name_or_path not in class_tables():
        raise unknown_name("class table", str(name_or_path), class_tables())
    return _FOLDER / f"{name_or_path}.yaml"


def _ignore_index(value: Any, path: Path) -> int:
    try:
        found = schemas.whole_number(value)
    except ValueError:
        found = -1
    if found < 0:
        raise ConfigError(f"{path}: ignore_index = {schemas.shown(value)} should be a whole number from 0 on.")
    return found


def _category(entry: Any, position: int, path: Path) -> Category:
    given = {"name": entry} if isinstance(entry, str) else entry
    said = schemas.read_as(schemas.TableClass, given, f"{path}: class {position}", error=ConfigError, hint=None)
    key = position if said.id is None else said.id
    return Category(key, said.name, said.isthing, said.color or default_color(position))


def _refuse_twins(values: Sequence[Any], key: str, where: Any) -> None:
    twin, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise ConfigError(f"{where}: two classes have the {key} {twin!r}.")


@dataclass(frozen=True)
class Category:
    """One class: its id in the data set's own files, its name, whether it is countable, and its colour."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "isthing": self.isthing, "color": list(self.color)}

    @classmethod
    def from_dict(cls, record: Any) -> Category:
        """Read what `to_dict` gave, out of a file that may be anybody's.

        Raises:
            ConfigError: a value is missing or wrong.
        """
        return cls(**dict(schemas.read_as(schemas.StoredClass, record, "a class", error=ConfigError, hint=None)))


Categories: TypeAlias = tuple[Category, ...]

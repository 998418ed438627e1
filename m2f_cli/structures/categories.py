"""Class tables: the names of a data set's classes, their colours, and which of them are countable.

The shipped tables are YAML files in `classes/`, with one class a line. A table of a user has the same form. It needs
`name` alone: by default `id` is the position, `isthing` is true, and the colour is that of `default_color`.
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
    """Classes of a data set.

    Attributes:
        dataset: name of the data set.
        source: origin of the table.
        ignore_index: value of pixels without a class in its semantic labels.
        categories: classes, in the order of their class numbers.
    """

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
        ConfigError: the name is unknown (the message has the nearest ones), the file cannot be read, or two classes
            have one id or name.
    """
    return load_class_table(name_or_path).categories


@functools.cache
def load_class_table(name_or_path: str | Path) -> ClassTable:
    """Return a class table; each is read once per process."""
    path = _table_path(name_or_path)
    tree = read_yaml(path, texts=TEXTS)
    entries = tree.get("classes")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: `classes` should be a list of classes.")
    ignore_index = _ignore_index(tree.get("ignore_index", 255), path)
    categories = tuple(_category(entry, position, path) for position, entry in enumerate(entries))
    _refuse_duplicates([c.id for c in categories], "id", path)
    _refuse_duplicates([c.name for c in categories], "name", path)
    return ClassTable(str(tree.get("dataset", path.stem)), str(tree.get("source", "")), ignore_index, categories)


def from_names(
    names: Sequence[str], things: Collection[str] | None = None, *, where: Any = "the list of class names"
) -> Categories:
    """Return classes from their names alone: ids 0, 1, … and default colours.

    Args:
        names: names of the classes, in the order of their class numbers.
        things: names of countable classes; None means all of them.
        where: file that the names are from, for messages.

    Raises:
        ConfigError: a name occurs twice or cannot be written in UTF-8, or a thing is not among the names.
    """
    broken = next((name for name in names if not schemas.is_whole(name)), None)
    if broken is not None:
        raise ConfigError(f"{where}: the class name {broken!r} holds half a character, which no file can hold.")
    _refuse_duplicates(list(names), "name", where)
    for thing in things or ():
        if thing not in names:
            raise unknown_name("class", thing, names)
    return tuple(
        Category(index, name, isthing=things is None or name in things, color=default_color(index))
        for index, name in enumerate(names)
    )


def default_color(index: int) -> tuple[int, int, int]:
    """Return the default colour (RGB, 0 to 255) of a class number. It is always the same and never near black.

    The hue turns by the golden angle from class to class. Hues come close again after a Fibonacci number of classes, so
    saturation and value change with a period of five. The first 40 colours are at least 25 grey levels apart.
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
        index = schemas.whole_number(value)
    except ValueError:
        index = -1
    if index < 0:
        raise ConfigError(f"{path}: ignore_index = {schemas.shown(value)} should be a whole number from 0 on.")
    return index


def _category(entry: Any, position: int, path: Path) -> Category:
    fields = {"name": entry} if isinstance(entry, str) else entry
    row = schemas.read_as(schemas.TableClass, fields, f"{path}: class {position}", error=ConfigError, hint=None)
    key = position if row.id is None else row.id
    return Category(key, row.name, row.isthing, row.color or default_color(position))


def _refuse_duplicates(values: Sequence[Any], key: str, where: Any) -> None:
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise ConfigError(f"{where}: two classes have the {key} {value!r}.")


@dataclass(frozen=True)
class Category:
    """Class of a data set.

    Attributes:
        id: number of the class in the data set's own files.
        name: name of the class.
        isthing: True for a countable class.
        color: RGB, each 0 to 255.
    """

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

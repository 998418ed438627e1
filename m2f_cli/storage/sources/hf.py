"""Images of a Hugging Face data set: hf://owner/name:split?column=image of the hub, hf:///folder:split of a disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingDependency, unknown_name
from ...runtime import network
from .. import files
from ..items import StoredItem
from ..retry import persistently
from .base import ID_COLUMNS, ItemSource, split_options
from .parquet import IMAGE_COLUMNS, content_of

OPTIONS = ("column", "id", "config")
_SCHEME = "hf://"
_FILES = ("datasets/", "spaces/", "buckets/")  # addresses of single files, which the hub's file system reads


def takes(text: str) -> bool:
    return text.startswith(_SCHEME) and not text.startswith(tuple(_SCHEME + each for each in _FILES))


def items(text: str) -> Iterator[StoredItem]:
    """Yield the rows of a split as items.

    Raises:
        MissingDependency: `datasets` is not installed.
        DataError: there is no such data set, split or column.
    """
    address, options = split_options(text, OPTIONS)
    rest = address.removeprefix(_SCHEME)
    name, _, split = rest.rpartition(":") if ":" in rest.rpartition("/")[2] else (rest, "", "")
    table = _Table(name, split, options.get("config", ""))
    rows = _opened(table)
    column = _column(rows, options.get("column"), files.shown(address))
    id_column = options.get("id") or next((each for each in ID_COLUMNS if each in rows.column_names), None)
    if id_column is not None and id_column not in rows.column_names:
        raise unknown_name(f"column of {files.shown(address)}", id_column, rows.column_names, error=DataError)
    folder, where = name.rstrip("/").rpartition("/")[2], files.shown(address)
    ids = rows.select_columns([id_column]) if id_column is not None else None
    for number in range(len(rows)):
        given = _value(ids, number, id_column, where) if ids is not None else None
        shown, own = f"{where}/{number}", str(given).strip() if given is not None else ""
        origin = f"{where}, row {number}" if own else ""
        yield HubItem(own or f"{folder}/{number:06d}", shown, origin, table=table, column=column, row=number)


def _value(rows: Any, number: int, column: str | None, where: str) -> Any:
    return persistently(f"{where}/{number}", "be read", lambda: rows[number][column])


@dataclass(frozen=True, slots=True)
class _Table:
    """Split of a data set.

    Attributes:
        name: "owner/name" on the hub, or an absolute path.
        split: name of the split; empty where there is only one.
        config: name of the subset; empty for the default.
    """

    name: str
    split: str
    config: str

    @property
    def is_here(self) -> bool:
        return self.name.startswith("/")


@dataclass(frozen=True, slots=True)
class HubItem(StoredItem):
    """Row of a Hugging Face data set.

    Attributes:
        table: the split.
        column: name of the column of images.
        row: number of the row.
    """

    table: _Table = field(default=_Table("", "", ""), repr=False)
    column: str = ""
    row: int = 0

    def read(self) -> bytes:
        from datasets import config

        value = persistently(self.uri, "be read", lambda: _images(self.table, self.column)[self.row][self.column])
        path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
        if isinstance(path, str) and not self.table.is_here and _lies_in(path, Path(config.HF_CACHE_HOME)):
            return files.read(path)  # `datasets` has put the file there itself
        source = f"{self.table.name}/list" if self.table.is_here else f"hf://datasets/{self.table.name}/list"
        return content_of(value, source, self.uri)


def _lies_in(path: str, folder: Path) -> bool:
    return not files.is_uri(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@functools.lru_cache(maxsize=4)
def _opened(table: _Table) -> Any:
    """Return the rows of a split."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("datasets", "A Hugging Face data set", extra="datasets") from error
    shown = f"{_SCHEME}{table.name}"
    if table.is_here:
        found = persistently(shown, "be opened", lambda: datasets.load_from_disk(table.name))
    elif network.is_offline() and not datasets.config.HF_DATASETS_OFFLINE:
        raise DataError(f"{shown} is not on this machine, and {network.SWITCHED_OFF}.", hint="Give a folder.")
    else:
        datasets.disable_progress_bars()
        found = persistently(shown, "be opened", lambda: datasets.load_dataset(table.name, table.config or None))
    if not isinstance(found, dict):
        if table.split:
            raise DataError(f"{shown} is one split, not several.", hint=f"Write {shown} without :{table.split}.")
        return found
    if not table.split and len(found) == 1:
        return next(iter(found.values()))
    if table.split not in found:
        hint = f"Write {shown}:SPLIT with one of {', '.join(found)}."
        raise DataError(f"{shown} has no split {table.split!r}." if table.split else f"{shown} has splits.", hint=hint)
    return found[table.split]


@functools.lru_cache(maxsize=4)
def _images(table: _Table, column: str) -> Any:
    """Return the column of images of a split, with the bytes as they are stored."""
    import datasets

    rows = _opened(table).select_columns([column])
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _column(rows: Any, given: str | None, where: str) -> str:
    import datasets

    if given is not None and given not in rows.column_names:
        raise unknown_name(f"column of {where}", given, rows.column_names, error=DataError)
    if given is not None:
        return given
    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    found = [name for name in IMAGE_COLUMNS if name in images] or images
    if not found:
        names = ", ".join(map(files.shown, rows.column_names))[:300]
        raise DataError(f"{where} has no column of images: {names}.", hint="Name one: ?column=NAME.")
    return str(found[0])


SOURCE = ItemSource(takes, items)

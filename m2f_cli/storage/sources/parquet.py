"""Rows of a parquet file, with a column of bytes, of {bytes, path} as `datasets` writes it, or of URIs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingDependency, unknown_name
from ...runtime.archives import FREE_GROWTH, LARGEST_IMAGE, MOST_GROWTH
from .. import files
from ..info import Info
from ..items import StoredItem
from ..stored_file import open_stored
from ..uris import name_of
from .base import ID_COLUMNS, URI_COLUMNS, ItemSource, ends_in, entry, split_options, stem

OPTIONS = ("column", "id")
IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "png", "bytes", "content")
LARGEST_GROUP = 1 << 30  # bytes of the images of one row group, which is in memory at once
_BATCH = 1024  # rows of ids
_RAISED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, MemoryError)  # by pyarrow
_READING = threading.Lock()  # threads that want the same row group read it once


def takes(text: str) -> bool:
    return ends_in(text, (".parquet", ".pq"))


def items(text: str) -> Iterator[StoredItem]:
    """Yield the rows as items; the bytes of an image are read when they are needed.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: the file cannot be read, has no column of images, or was written while its rows were read.
    """
    address, options = split_options(text, OPTIONS)
    where = files.shown(address)
    expected = files.info(address)
    with _reading(where):
        table = _opened(address)
        column = _column(table.schema_arrow, options.get("column"), where)
        id_column = _id_column(table.schema_arrow, options.get("id"), column, where)
    is_text = _kind(table.schema_arrow.field(column).type) == "uri"
    row, folder = 0, stem(name_of(where))
    for group in range(table.num_row_groups):
        wanted = [each for each in (id_column, column if is_text else None) if each is not None]
        for number, values in enumerate(_values(table, group, wanted, where)):
            row += 1
            origin = f"{where}, row {row}"
            given = values.get(id_column) if id_column else None
            name = str(given).strip() or None if given is not None else None
            if is_text:
                yield entry(str(values[column] or ""), address, origin, name)
            else:
                yield CellItem(
                    name or f"{folder}/{row:06d}",
                    f"{where}/{row}",
                    origin if name else "",
                    address=address,
                    column=column,
                    group=group,
                    row=number,
                    expected=expected,
                )
    files.refuse_changed(address, expected)
    if row == 0:
        raise DataError(f"{where} has no rows.", hint="Give a table with a row for each image.")


@dataclass(frozen=True, slots=True)
class CellItem(StoredItem):
    """Cell of a parquet file that holds the bytes of an image, or where they are.

    Attributes:
        address: path or URI of the file, with all its secrets.
        column: name of the column.
        group: number of the row group.
        row: number of the row in its group.
        expected: size and version of the file when it was listed.
    """

    address: str = field(default="", repr=False)
    column: str = ""
    group: int = 0
    row: int = 0
    expected: Info | None = None

    @property
    def path(self) -> Path | None:
        return None if files.is_uri(self.address) else Path(self.address)

    def read(self) -> bytes:
        with _reading(files.shown(self.address)), _READING:
            value = _group(self.address, self.column, self.group, self.expected)[self.row].as_py()
        return content_of(value, self.address, self.uri)


def content_of(value: Any, source: str, where: str) -> bytes:
    """Return the bytes that a cell holds, or those behind the URI or path that it holds.

    Args:
        value: bytes, text, or {"bytes", "path"}.
        source: path or URI of the table; see `base.entry` for what a cell of it may name.
        where: name of the cell in errors.

    Raises:
        DataError: the cell is empty, or what it names cannot be read or may not be followed.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and isinstance(value, dict):
        content = value.get("path")
    if isinstance(content, str):
        return entry(content, source, where, None).read()
    if not isinstance(content, (bytes, bytearray)):
        raise DataError(f"{where} holds no image.")
    if len(content) > LARGEST_IMAGE:
        raise DataError(f"{where} has {len(content):,} bytes; {LARGEST_IMAGE:,} are allowed.")
    return bytes(content)


@functools.lru_cache(maxsize=2)
def _group(address: str, column: str, group: int, expected: Info | None) -> Any:
    """Read a column of one row group; values that repeat are kept once, so that they cannot multiply."""
    files.refuse_changed(address, expected)
    where, names = f"{files.shown(address)}, row group {group}", (column, f"{column}.bytes", f"{column}.path")
    row_group = _opened(address).metadata.row_group(group)
    chunks = [row_group.column(each) for each in range(row_group.num_columns)]
    chunks = [each for each in chunks if each.path_in_schema in names]
    packed = sum(each.total_compressed_size for each in chunks)
    claimed = sum(each.total_uncompressed_size for each in chunks)
    if claimed > LARGEST_GROUP or claimed > max(FREE_GROWTH, MOST_GROWTH * packed):
        most = min(LARGEST_GROUP, max(FREE_GROWTH, MOST_GROWTH * packed))
        hint = "Write it with fewer rows in a group; a small file that claims this may be a decompression bomb."
        raise DataError(f"{where} claims {claimed:,} bytes of images; {most:,} are allowed.", hint=hint)
    table = _opened(address, read_dictionary=[each.path_in_schema for each in chunks])
    found = table.read_row_group(group, columns=[column])[column]
    files.refuse_changed(address, expected)  # it is read in parts, which may be of two versions
    return found


def _opened(address: str, **options: Any) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "A parquet file", extra="storage") from error
    file = open_stored(address)
    return parquet.ParquetFile(str(file) if isinstance(file, Path) else file.open("rb"), **options)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn an error of pyarrow into one sentence about the file."""
    try:
        yield
    except _RAISED as error:
        said = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        hint = "It may be half a download: fetch it again."
        raise DataError(f"{where} is no parquet file that can be read: {said}.", hint=hint) from error


def _values(table: Any, group: int, columns: list[str], where: str) -> Iterator[dict[str, Any]]:
    """Yield the values of some columns, row by row; no values where there are no columns."""
    if not columns:
        yield from ({} for _ in range(table.metadata.row_group(group).num_rows))
        return
    batches = table.iter_batches(batch_size=_BATCH, row_groups=[group], columns=columns)
    while True:
        with _reading(where):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from rows


def _column(schema: Any, given: str | None, where: str) -> str:
    kinds = {name: _kind(schema.field(name).type) for name in dict.fromkeys(schema.names)}
    if given is not None:
        if given not in kinds:
            raise unknown_name(f"column of {where}", given, kinds, error=DataError)
        if kinds[given] is None:
            raise DataError(f"The column {given!r} of {where} holds no images, but {schema.field(given).type}.")
        return given
    content = [name for name, kind in kinds.items() if kind == "content"]
    uris = [name for name, kind in kinds.items() if kind == "uri" and name in URI_COLUMNS]
    best = [name for name in IMAGE_COLUMNS if name in content] or (content if len(content) == 1 else [])
    found = best or sorted(uris, key=URI_COLUMNS.index)
    if not found:
        names = ", ".join(map(files.shown, kinds))[:300]
        hint = f"Name one: {where}?column=NAME (behind an address of the web: #column=NAME)."
        raise DataError(f"{where} has no column that is surely of images: {names}.", hint=hint)
    return found[0]


def _id_column(schema: Any, given: str | None, column: str, where: str) -> str | None:
    if given is not None and given not in schema.names:
        raise unknown_name(f"column of {where}", given, schema.names, error=DataError)
    if given is not None:
        return given
    return next((name for name in ID_COLUMNS if name in schema.names and name != column), None)


def _kind(kind: Any) -> str | None:
    """Return "content" for bytes and {bytes, path}, "uri" for text, None for other types."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "content"
    if types.is_string(kind) or types.is_large_string(kind):
        return "uri"
    fields = {kind.field(each).name for each in range(kind.num_fields)} if types.is_struct(kind) else set()
    return "content" if "bytes" in fields else None


SOURCE = ItemSource(takes, items)

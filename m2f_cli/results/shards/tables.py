"""Parquet files: the only file that uses pyarrow. It is loaded when a table is written."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingDependency
from ...runtime.files import atomic

ROWS_AT_ONCE = 64  # in memory, and in a row group of the file
ERRORS = ("id", "uri", "reason")
_COLUMNS = {  # names of pyarrow's types; a list holds such a name
    "id": "string",
    "uri": "string",
    "reason": "string",
    "width": "int32",
    "height": "int32",
    "task": "string",
    "segment_id": ["int32"],
    "label": ["string"],
    "category_id": ["int32"],
    "isthing": ["bool_"],
    "score": ["float64"],
    "bbox": [["int32"]],
    "area": ["int32"],
    "counts": ["string"],
}


def check_installed(purpose: str) -> None:
    """Check that parquet files can be written, without the cost of an import.

    Raises:
        MissingDependency: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingDependency("pyarrow", purpose, "storage")


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]], about: dict[str, str]) -> None:
    """Write rows to a parquet file, whole or not at all. Equal rows give equal bytes.

    Args:
        path: the file.
        columns: names of the columns, out of those of rows and of errors.
        rows: the rows, of which few are held in memory at a time.
        about: the metadata of the schema.

    Raises:
        M2FError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    def type_of(kind: Any) -> Any:
        return pyarrow.list_(type_of(kind[0])) if isinstance(kind, list) else getattr(pyarrow, kind)()

    schema = pyarrow.schema([(name, type_of(_COLUMNS[name])) for name in columns], metadata=about)
    rows = iter(rows)
    with atomic(path) as part, parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        while group := [_written(row) for row in itertools.islice(rows, ROWS_AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def read_table(path: Path) -> tuple[dict[str, str], Iterator[dict[str, Any]]]:
    """Return the metadata of a parquet file, and its rows, of which few are held in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        about = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
        except (OSError, ValueError, ArrowException) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}.") from error

    return about, rows()


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose texts UTF-8 can hold: bytes of a file's name that are not UTF-8 become escapes."""
    return {key: _plain(value) if isinstance(value, str) else value for key, value in row.items()}


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

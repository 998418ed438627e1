"""Format `parquet`: a table with one row per image, its masks as run lengths, its origin in the schema's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import ConfigError, DataError
from ...runtime import documents
from ...structures.categories import Category
from ..rows import LISTS, Row, checked, result_of
from ..types import Result
from .base import Provenance, ShardFormat
from .tables import read_table, write_table

COLUMNS = ("id", "uri", "width", "height", "task", *LISTS)


def write(rows: Iterable[Row], stem: Path, origin: Provenance) -> None:
    """Write STEM.parquet; `results.rows.Row` has the columns.

    Raises:
        M2FError: the file cannot be written.
    """
    write_table(stem.with_name(f"{stem.name}.parquet"), COLUMNS, rows, origin.texts())


def read(path: Path) -> Iterator[tuple[Row, Result]]:
    """Yield the rows of a parquet file that `write` wrote, each with the result that it was made of.

    Raises:
        DataError: the file cannot be read, or was not written by m2f.
    """
    about, rows = read_table(path)
    try:
        categories = tuple(map(Category.from_dict, documents.parse_json(about["m2f.categories"].encode(), str(path))))
        for row in map(checked, rows):
            yield row, result_of(row, categories)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{path} has no results of m2f: {error}.", hint="Give a file of --save parquet.") from error


FORMAT = ShardFormat(write, (".parquet",))

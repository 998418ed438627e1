"""Lists of images: a text with a URI or path per line and, after a tab, an id; or a CSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...errors import DataError
from ...runtime.documents import LARGEST_TEXT, decode
from ...runtime.files import open_to_read
from .. import files
from ..items import StoredItem
from .base import ID_COLUMNS, URI_COLUMNS, ItemSource, ends_in, entry

LONGEST_LINE = 1 << 16  # bytes
SUFFIXES = (".txt", ".csv", ".tsv")


def takes(text: str) -> bool:
    return ends_in(text, SUFFIXES)


def items(text: str) -> Iterator[StoredItem]:
    """Yield the items of a list, line by line; an entry that may not be followed is an item that cannot be read.

    Raises:
        DataError: the list cannot be read, is not UTF-8, or is a table without a column of images.
    """
    where = files.shown(text)
    pairs = _of_table(text, where) if not _address(text).endswith(".txt") else _of_lines(text, where)
    is_any = False
    for number, uri, name in pairs:
        is_any = True
        yield entry(uri, text, f"{where}, line {number}", name)
    if not is_any:
        raise DataError(f"{where} lists no images.", hint="Write a URI or path per line.")


def _address(text: str) -> str:
    return (text.partition("?")[0] if files.is_uri(text) else text).lower()


def _of_lines(text: str, where: str) -> Iterator[tuple[int, str, str | None]]:
    for number, line in _lines(text, where):
        uri, _, name = line.rstrip("\n").partition("\t")
        if uri.strip() or name.strip():
            yield number, uri.strip(), name.strip() or None


def _of_table(text: str, where: str) -> Iterator[tuple[int, str, str | None]]:
    lines = (line for _, line in _lines(text, where))
    reader = csv.reader(lines, delimiter="\t" if _address(text).endswith(".tsv") else ",")
    try:
        header = [each.strip().lower() for each in next(reader, [])]
        column = next((header.index(each) for each in URI_COLUMNS if each in header), None)
        id_column = next((header.index(each) for each in ID_COLUMNS if each in header), None)
        if column is None:
            names = ", ".join(header)[:200] or "nothing"
            hint = f"Its first line names the columns; one of them is {', '.join(URI_COLUMNS)}."
            raise DataError(f"{where} has no column of images, but {files.shown(names)}.", hint=hint)
        for row in reader:
            uri = row[column].strip() if column < len(row) else ""
            name = row[id_column].strip() if id_column is not None and id_column < len(row) else ""
            if uri or name:
                yield reader.line_num, uri, name or None
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num} is no line of a table: {error}.") from error


def _lines(text: str, where: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers; a local file is never whole in memory."""
    if files.is_uri(text):
        yield from _numbered(io.BytesIO(files.read(text, limit=LARGEST_TEXT)), where)
        return
    try:
        with open_to_read(Path(text)) as file:
            yield from _numbered(file, where)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}.") from error


def _numbered(file: BinaryIO, where: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{where}, line {number} has more than {LONGEST_LINE:,} bytes.", hint="Is it a list?")
        yield number, decode(line, f"{where}, line {number}")


SOURCE = ItemSource(takes, items)

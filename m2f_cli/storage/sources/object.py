"""One object of a store, or one file of a web server."""

from __future__ import annotations

from collections.abc import Iterator

from .. import files
from ..items import ObjectItem, StoredItem
from ..uris import name_of, scheme_of
from .base import ItemSource, stem


def items(text: str) -> Iterator[StoredItem]:
    scheme_of(text)
    shown = files.shown(text)
    folder = name_of(shown.rpartition("/")[0])
    yield ObjectItem(stem(name_of(text)) or "image", shown, folder=folder, address=text)


SOURCE = ItemSource(files.is_uri, items)

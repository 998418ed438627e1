"""Sources: what a user or a list names becomes items. Each kind is a file here and a line in `plugins.py`."""

from __future__ import annotations

from collections.abc import Iterator

from ... import plugins
from ..items import StoredItem
from .base import ItemSource


def open_source(text: str) -> Iterator[StoredItem] | None:
    """Return the items of the first kind of source that takes `text`; None for a file, folder or glob of images here.

    Raises:
        DataError: the source cannot be read, or names two different images by one id.
    """
    for name in plugins.table("sources"):
        kind = plugins.get("sources", name)
        assert isinstance(kind, ItemSource)
        if kind.takes(text):
            return kind.items(text)
    return None

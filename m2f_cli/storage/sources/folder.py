"""Images below a prefix of a store, or those that fit a pattern such as s3://bucket/day-*/*.jpg."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from ...errors import DataError
from .. import files
from ..items import ObjectItem, StoredItem
from ..uris import STORES, scheme_of
from . import archive, parquet
from .base import IMAGES, ItemSource, no_images, stem

_MAGIC = re.compile(r"[*?\[]")


def takes(text: str) -> bool:
    if not files.is_uri(text) or text.partition("://")[0].lower() not in STORES:
        return False
    return text.endswith("/") or PurePosixPath(text).suffix.lower() not in IMAGES or _MAGIC.search(text) is not None


def items(text: str) -> Iterator[StoredItem]:
    scheme_of(text)
    found = _MAGIC.search(text)
    if found is None:
        yield from _below(text)
        return
    prefix = text[: found.start()].rpartition("/")[0] + "/"
    is_any = False
    for name, info in files.listed(prefix):
        if not fnmatch.fnmatchcase(name, text):
            continue
        for kind in (archive.SOURCE, parquet.SOURCE):
            if kind.takes(name):
                is_any = True
                yield from kind.items(name)
        if PurePosixPath(name).suffix.lower() in IMAGES:
            is_any = True
            yield _item(name, prefix, info)
    if not is_any:
        raise DataError(f"The pattern {files.shown(text)} matches no image, archive or parquet file.")


def _below(text: str) -> Iterator[StoredItem]:
    prefix, is_any, count = text.rstrip("/") + "/", False, 0
    for name, info in files.listed(prefix):
        count += 1
        hidden = any(part.startswith(".") for part in name.removeprefix(prefix).split("/"))
        if not hidden and PurePosixPath(name).suffix.lower() in IMAGES:
            is_any = True
            yield _item(name, prefix, info)
    if count == 0 and not text.endswith("/") and files.exists(text):  # an image whose name has no suffix
        is_any = True
        yield _item(text, text.rpartition("/")[0] + "/", files.info(text))
    if not is_any:
        raise no_images(f"{files.shown(text)} or below")


def _item(name: str, prefix: str, info: files.Info) -> ObjectItem:
    folder = PurePosixPath(name).parent.name
    return ObjectItem(stem(name.removeprefix(prefix)), files.shown(name), folder=folder, address=name, expected=info)


SOURCE = ItemSource(takes, items)

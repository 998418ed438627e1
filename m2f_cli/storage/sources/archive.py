"""Images in a zip or a tar that is not compressed, here or in a store; the shards of WebDataset are such tars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...runtime.trees import open_archive
from .. import files
from ..items import MemberItem, ObjectItem, StoredItem
from ..stored_file import open_stored
from ..uris import name_of
from .base import IMAGES, ItemSource, ends_in, no_images, stem

_IDS = ".panoptic.png"  # ids of segments, beside an image and its json in a shard of annotated images
SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def takes(text: str) -> bool:
    return ends_in(text, SUFFIXES)


def items(text: str) -> Iterator[StoredItem]:
    file = open_stored(text)
    archive = open_archive(file)
    expected = files.info(text) if isinstance(file, Path) else file.info
    folder = stem(name_of(str(file)))
    is_any = False
    for name in archive.names(suffix=tuple(IMAGES)):
        if name.endswith(_IDS) and archive.has(f"{name.removesuffix(_IDS)}.json"):
            continue
        is_any = True
        where, part = files.shown(f"{file}/{name}"), archive.part(name)
        if part is None:
            yield MemberItem(stem(name), where, folder=folder, archive=archive, name=name, expected=expected)
        else:
            start, stop = part
            yield ObjectItem(stem(name), where, folder=folder, address=text, expected=expected, start=start, stop=stop)
    if not is_any:
        raise no_images(str(file))


SOURCE = ItemSource(takes, items)

"""Contract of a source, and what several kinds share."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl

from ...errors import ConfigError, DataError, unknown_name
from .. import files
from ..items import ObjectItem, RefusedItem, StoredItem
from ..uris import WEB, scheme_of

IMAGES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".avif",
        ".tga",
    )
)
URI_COLUMNS = ("uri", "url", "image", "path", "file", "file_name", "filename")
ID_COLUMNS = ("id", "key", "__key__", "name")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class ItemSource:
    """Kind of source.

    Attributes:
        takes: says whether a path or URI is of this kind; quick, at most a look at the local disk.
        items: yields the items behind it, in a stable order.
    """

    takes: Callable[[str], bool]
    items: Callable[[str], Iterator[StoredItem]]


def ends_in(text: str, suffixes: tuple[str, ...]) -> bool:
    """Return True for a local file or a URI with one of the suffixes, which may have options behind it."""
    if not files.is_uri(text) and os.path.exists(text):
        return text.lower().endswith(suffixes) and os.path.isfile(text)
    address = re.split("[?#]", text, maxsplit=1)[0]
    is_here = files.is_uri(text) or os.path.isfile(address)
    return is_here and address.lower().endswith(suffixes)


def split_options(text: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split options such as ?column=photo off a path or URI. Behind an address of the web they begin with "#".

    Raises:
        ConfigError: an unknown option.
    """
    if not files.is_uri(text) and os.path.exists(text):
        return text, {}
    is_web = files.is_uri(text) and text.partition("://")[0].lower() in WEB
    address, _, options = text.partition("#" if is_web else "?")
    given = dict(parse_qsl(options, keep_blank_values=True))
    for name in given:
        if name not in known:
            raise unknown_name(f"option of {files.shown(address)}", name, known)
    if options and not given:
        raise ConfigError(f"{files.shown(address)} has options that make no sense.", hint=f"Write ?{known[0]}=NAME.")
    return address, given


def stem(name: str) -> str:
    """Return a relative name with "/" between folders, without its suffix."""
    return str(PurePosixPath(name.replace("\\", "/")).with_suffix("")) if name.strip("./\\") else name


def entry(text: str, source: str, origin: str, name: str | None) -> StoredItem:
    """Return the item of an entry of a list.

    Args:
        text: the entry: a URI, or a path from the folder of the list on.
        source: path or URI of the list.
        origin: the place of the entry, for messages.
        name: its id; None where the list gives none.

    The author of a list may be anybody: schemes other than those of stores are refused, and so is a path of this
    machine in a list that comes from a store. A refused entry is an item that cannot be read.
    """
    shown = files.shown(text)
    given = name if name else stem(shown.rstrip("/").rpartition("/")[2]) or "image"
    place = origin if name else ""
    try:
        address = _address(text, source)
    except DataError as error:
        reason = f"{origin}: {error.message}"
        return RefusedItem(given, shown, place, reason=reason, hint=error.hint)
    folder = PurePosixPath(files.shown(address).replace("\\", "/")).parent.name
    shown = files.shown(address) if files.is_uri(address) else address
    return ObjectItem(given, shown, place, folder, address=address)


def _address(text: str, source: str) -> str:
    if not text.strip():
        raise DataError("there is no image in this line.")
    if files.is_uri(text):
        scheme_of(text)
        return text
    if not files.is_uri(source):
        return os.path.join(os.path.dirname(source), text)
    parts = text.replace("\\", "/")
    if parts.startswith("/") or _DRIVE.match(parts) or ".." in parts.split("/"):
        raise DataError(f"{files.shown(text)} leads out of the folder of the list.", hint="Give URIs.")
    scheme, _, rest = re.split("[?#]", source, maxsplit=1)[0].partition("://")
    return f"{scheme}://{posixpath.join(posixpath.dirname(rest), parts)}"


def no_images(where: str) -> DataError:
    """Return the error for a source without images."""
    return DataError(f"No images in {where}.", hint=f"Looked for {', '.join(sorted(IMAGES))}, in any case.")

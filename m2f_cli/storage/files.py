"""Read, list and write files of this machine, of web servers and of object stores by their URI.

What may pass (time-outs, 429, 5xx, cut connections) is tried again with growing pauses (`retry`). Messages have the
URI without user, password and query. A path needs no optional package, and neither does an address of the web.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from ..runtime import files, network
from ..runtime.archives import LARGEST
from . import http_files, object_stores
from .info import Info
from .retry import MissingObject, persistently
from .uris import WEB, is_uri, scheme_of, shown

__all__ = [
    "Info",
    "MissingObject",
    "exists",
    "find",
    "info",
    "is_uri",
    "listed",
    "read",
    "refuse_changed",
    "remove",
    "shown",
    "write",
]

_CHANGED = "It was written while it was read; run again."


def read(
    uri: str, *, limit: int = LARGEST, start: int | None = None, stop: int | None = None, expected: Info | None = None
) -> bytes:
    """Read a file, or its bytes from `start` to `stop`.

    Args:
        uri: URI or path.
        limit: most bytes to read; a longer file is refused.
        expected: size and version of the whole file when it was listed.

    Raises:
        MissingObject: there is no such file.
        DataError: it cannot be read, is too large, or its size or version is not the expected one.
    """
    if expected is not None and expected.size is not None and start is None and expected.size > limit:
        raise _too_large(uri, limit)
    content, found = (
        _read_uri(uri, limit, start, stop, expected) if is_uri(uri) else _read_path(Path(uri), limit, start, stop)
    )
    if len(content) > limit:
        raise _too_large(uri, limit)
    if expected is not None:
        _compare(uri, expected, found)
        if start is None and stop is None and expected.size not in (None, len(content)):
            said = f"{shown(uri)} changed: it had {expected.size:,} bytes when it was listed, and {len(content):,} now."
            raise DataError(said, hint=_CHANGED)
    return content


def info(uri: str) -> Info:
    """Return the size and version of a file.

    Raises:
        MissingObject: there is no such file.
        DataError: it cannot be read.
    """
    if not is_uri(uri):
        return _info_of_path(Path(uri))
    ask = http_files.info if _scheme(uri) in WEB else object_stores.info
    return persistently(uri, "be read", lambda: ask(uri))


def refuse_changed(uri: str, expected: Info | None) -> None:
    """Compare a file with what it was when it was listed.

    Raises:
        DataError: its size or version is another one, or it cannot be read.
    """
    if expected is not None:
        _compare(uri, expected, info(uri))


def exists(uri: str) -> bool:
    """Return True if there is such a file.

    Raises:
        DataError: the store cannot be asked.
    """
    try:
        info(uri)
    except MissingObject:
        return False
    return True


def find(uri: str) -> Iterator[str]:
    """Yield the files below a folder or prefix, sorted; none where there is no such folder.

    Raises:
        DataError: the store cannot be asked, or is a web server, which has no lists.
    """
    return (name for name, _ in listed(uri))


def listed(uri: str) -> Iterator[tuple[str, Info]]:
    """Yield the files below a folder or prefix, as `find` does, each with its size and version."""
    if not is_uri(uri):
        for folder, folders, names in os.walk(uri):
            folders.sort()
            for name in sorted(names):
                yield os.path.join(folder, name), _info_of_path(Path(folder, name))
    elif _scheme(uri) in WEB:
        hint = "Give the addresses of its files in a manifest (list.txt)."
        raise DataError(f"{shown(uri)} cannot be listed: web servers have no lists of files.", hint=hint)
    else:
        yield from persistently(uri, "be listed", lambda: list(object_stores.find(uri)))


def write(uri: str, content: bytes | Path) -> None:
    """Write a file, whole or not at all.

    Args:
        uri: URI or path.
        content: the bytes, or a local file that has them.

    Raises:
        DataError: the store does not take it, or is a web server.
        M2FError: a local file cannot be written.
    """
    if is_uri(uri):
        _refuse_web(uri)
        persistently(uri, "be written", lambda: object_stores.write(uri, content))
        return
    with files.atomic(Path(uri)) as part:
        part.write_bytes(content.read_bytes() if isinstance(content, Path) else content)


def remove(uri: str) -> None:
    """Remove a file; nothing happens where there is none.

    Raises:
        DataError: the store does not allow it, or is a web server.
        M2FError: a local file cannot be removed.
    """
    if not is_uri(uri):
        with files.writing_to(Path(uri)):
            Path(uri).unlink(missing_ok=True)
        return
    _refuse_web(uri)
    try:
        persistently(uri, "be removed", lambda: object_stores.remove(uri))
    except MissingObject:
        return


# --- paths and URIs ---------------------------------------------------------------------------------------------------


def _read_path(path: Path, limit: int, start: int | None, stop: int | None) -> tuple[bytes, Info]:
    try:
        with files.open_to_read(path) as file:
            status = os.fstat(file.fileno())
            file.seek(start or 0)
            most = limit + 1 if stop is None else min(limit + 1, stop - (start or 0))
            left = status.st_size - (start or 0)  # Python sets as much memory aside as it is asked for
            return file.read(min(most, left + 1) if left > 0 else most), Info(status.st_size, str(status.st_mtime_ns))
    except FileNotFoundError as error:
        raise MissingObject(f"There is no file {shown(str(path))}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown(str(path))} cannot be read: {reason}.") from error


def _info_of_path(path: Path) -> Info:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingObject(f"There is no file {shown(str(path))}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{shown(str(path))} cannot be read: {reason}.") from error
    return Info(status.st_size, str(status.st_mtime_ns))


def _read_uri(
    uri: str, limit: int, start: int | None, stop: int | None, expected: Info | None
) -> tuple[bytes, Info | None]:
    if _scheme(uri) in WEB:
        return persistently(uri, "be read", lambda: http_files.read(uri, limit, start, stop))
    content = persistently(uri, "be read", lambda: object_stores.read(uri, limit, start, stop))
    # A store does not say which version it gave, so that it is asked afterwards.
    return content, info(uri) if expected is not None and expected.version is not None else None


def _compare(uri: str, expected: Info, found: Info | None) -> None:
    if found is None:
        return
    for old, new, what in zip(expected, found, ("size", "version"), strict=True):
        if old is not None and new is not None and old != new:
            raise DataError(
                f"{shown(uri)} changed: its {what} was {old} when it was listed, and is {new}.", hint=_CHANGED
            )


def _scheme(uri: str) -> str:
    """Return the scheme of a URI that may be read now.

    Raises:
        DataError: it may not: see `uris.scheme_of`; or the network is switched off.
    """
    scheme = scheme_of(uri)
    if network.is_offline():
        raise DataError(f"{shown(uri)} is not on this machine, and {network.SWITCHED_OFF}.", hint="Give local files.")
    return scheme


def _refuse_web(uri: str) -> None:
    if _scheme(uri) in WEB:
        raise DataError(
            f"{shown(uri)} cannot be written: it is an address of the web.", hint="Write to s3:// or gs://."
        )


def _too_large(uri: str, limit: int) -> DataError:
    return DataError(f"{shown(uri)} has more than {limit:,} bytes, which are not read.")

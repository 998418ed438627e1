"""Files of stores and web servers that are read in parts, in the place of a `Path`."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from . import files
from .info import Info

_BLOCK = 1 << 20  # bytes of one request


class StoredStat(NamedTuple):
    """Size and a number that changes with the version, under the names that `os.stat` gives them."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class StoredFile:
    """File behind a URI, with the methods of `Path` that readers of archives and tables need.

    Attributes:
        uri: its address, with all its secrets.
        info: size and version when it was found.
    """

    uri: str = field(repr=False)
    info: Info

    def __str__(self) -> str:
        return files.shown(self.uri)

    def is_file(self) -> bool:
        return True

    def stat(self) -> StoredStat:
        return StoredStat(self.info.size or 0, zlib.crc32(str(self.info.version).encode()))

    def open(self, mode: str = "rb") -> Any:
        return io.BufferedReader(_Parts(self), _BLOCK)


def open_stored(address: str) -> Path | StoredFile:
    """Return the file of a path or URI.

    Raises:
        MissingObject: there is no such file.
        DataError: it cannot be read, or its size is not known.
    """
    info = files.info(address)
    if not files.is_uri(address):
        return Path(address)
    if info.size is None:
        hint = "Download it and give the file."
        raise DataError(f"{files.shown(address)} cannot be read in parts: its size is not known.", hint=hint)
    return StoredFile(address, info)


class _Parts(io.RawIOBase):
    """Raw stream over the parts of a stored file."""

    def __init__(self, file: StoredFile):
        super().__init__()
        self.file = file
        self.at = 0
        self.size = file.info.size or 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self.at = base + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        stop = min(self.at + len(buffer), self.size)
        if stop <= self.at:
            return 0
        content = files.read(self.file.uri, limit=stop - self.at, start=self.at, stop=stop)
        if len(content) < stop - self.at:
            raise DataError(f"{self.file} is shorter than it was when it was found.", hint="Run again.")
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

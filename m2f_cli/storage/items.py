"""Items: the images that a source names, each with the way to its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..runtime.archives import LARGEST_IMAGE
from ..runtime.trees import Archive
from . import files
from .info import Info
from .stored_file import StoredFile


@dataclass(frozen=True, slots=True)
class StoredItem:
    """Image of a source. It can be pickled, so that another process can read it.

    Attributes:
        id: name of its results: relative, with "/" between folders, without a suffix.
        uri: the image, as messages and results have it: without user, password and query.
        origin: the place that names it, such as "list.csv, line 3"; empty where nobody gave the id.
        folder: name that is put before the id where another image has the same.
    """

    id: str
    uri: str
    origin: str = ""
    folder: str = ""

    @property
    def key(self) -> str:
        """Identity: items with one key are one image under one id."""
        return f"{self.uri} {self.id}" if self.origin else self.uri

    @property
    def path(self) -> Path | None:
        """Local file that holds the image, alone or among others; None for one of a store."""
        return None

    @property
    def is_file(self) -> bool:
        """True for an image that is a whole local file."""
        return False

    def read(self) -> bytes:
        """Return the bytes of the image's file.

        Raises:
            DataError: they cannot be read, or are not those that were listed.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ObjectItem(StoredItem):
    """Object of a store, file of a web server or local file, or a part of one, as in a tar.

    Attributes:
        address: its URI or path, with all its secrets.
        expected: size and version of the whole file when it was listed.
        start, stop: the part; None for the whole file.
    """

    address: str = field(default="", repr=False)
    expected: Info | None = None
    start: int | None = None
    stop: int | None = None

    @property
    def key(self) -> str:
        where = f"{self.address} {self.start}" if self.start is not None else self.address
        return f"{where} {self.id}" if self.origin else where

    @property
    def path(self) -> Path | None:
        return None if files.is_uri(self.address) else Path(self.address)

    @property
    def is_file(self) -> bool:
        return self.path is not None and self.start is None

    def read(self) -> bytes:
        content = files.read(
            self.address, limit=LARGEST_IMAGE, start=self.start, stop=self.stop, expected=self.expected
        )
        if self.start is not None and self.stop is not None and len(content) < self.stop - self.start:
            raise DataError(f"{self.uri} is cut off.", hint="Copy or download the archive again.")
        return content


@dataclass(frozen=True, slots=True)
class MemberItem(StoredItem):
    """File in a zip.

    Attributes:
        archive: the zip.
        name: its name in there.
        expected: size and version of the zip when it was listed.
    """

    archive: Archive | None = field(default=None, repr=False)
    name: str = ""
    expected: Info | None = None

    @property
    def path(self) -> Path | None:
        file = None if self.archive is None else self.archive.file
        return file if isinstance(file, Path) else None

    def read(self) -> bytes:
        assert self.archive is not None
        file = self.archive.file
        content = self.archive.read(self.name)
        files.refuse_changed(file.uri if isinstance(file, StoredFile) else str(file), self.expected)
        return content


@dataclass(frozen=True, slots=True)
class RefusedItem(StoredItem):
    """Entry of a list that may not or cannot be followed: reading it is the error.

    Attributes:
        reason: the message.
        hint: the remedy.
    """

    reason: str = ""
    hint: str | None = None

    def read(self) -> bytes:
        raise DataError(self.reason, hint=self.hint)

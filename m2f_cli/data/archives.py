"""Trees of files: a folder, a zip or tar that is read in place without unpacking it, or several of them as one.

Names are relative to the tree, with "/" between folders. A tree can be pickled; each process opens archives for itself.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError

LARGEST = 4 << 30  # bytes of one file of an archive: more is no data set but a bomb
SUFFIXES = (".zip", ".tar")
_CHUNK = 1 << 20  # bytes
_IGNORED = ("__MACOSX/", "PaxHeader/")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstd"}
_DAMAGE = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, struct.error, zlib.error)


class Tree(Protocol):
    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        """All files below `folder` that end in `suffix` (case does not matter), sorted, without hidden ones."""

    def has(self, name: str) -> bool: ...

    def has_folder(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Raises:
        DataError: missing, unreadable, damaged, too large, or a name that leads out of the tree.
        """

    def path(self, name: str) -> Path | None:
        """The file itself; None where it lies in an archive."""

    def rooted(self, marks: Sequence[str], wrapper: str) -> Tree | None:
        """The part of this tree that has one of `marks` (files or folders) at its top; None where there is none.

        Args:
            wrapper: the folder that a data set's files usually lie in.
        """


@dataclass(frozen=True)
class Folder:
    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        found = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return _plain((path.relative_to(self.root).as_posix() for path in found), suffix)

    def has(self, name: str) -> bool:
        return is_safe(name) and (self.root / name).is_file()

    def has_folder(self, name: str) -> bool:
        return (self.root / name).is_dir()

    def read(self, name: str) -> bytes:
        _refuse_evil(name, str(self))
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.root / name} cannot be read: {error.strerror or error}.") from error

    def path(self, name: str) -> Path | None:
        return self.root / name if self.has(name) else None

    def rooted(self, marks: Sequence[str], wrapper: str) -> Folder | None:
        folders = (self.root, self.root / wrapper)
        return next((Folder(folder) for folder in folders if any((folder / mark).exists() for mark in marks)), None)


@dataclass(frozen=True)
class Archive:
    """A zip, or a tar that is not compressed, below `prefix` (empty, or ending in "/")."""

    file: Path
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.file}/{self.prefix}".rstrip("/")

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        start = self.prefix + (f"{folder}/" if folder else "")
        return _plain((name.removeprefix(self.prefix) for name in self._index() if name.startswith(start)), suffix)

    def has(self, name: str) -> bool:
        return self.prefix + name in self._index()

    def has_folder(self, name: str) -> bool:
        return any(each.startswith(f"{self.prefix}{name}/") for each in self._index())

    def read(self, name: str) -> bytes:
        _refuse_evil(name, str(self))
        if not self.has(name):
            raise DataError(f"{self.file} holds no {self.prefix}{name}.")
        member = self._index()[self.prefix + name]
        if member.size > LARGEST:
            raise DataError(f"{self.file}: {name} claims {member.size:,} bytes; {LARGEST:,} are allowed.")
        try:
            return member.read(self.file)
        except (zipfile.BadZipFile, *_DAMAGE) as error:
            hint = "Copy or download the archive again."
            raise DataError(f"{self.file}: {name} cannot be unpacked: {error}.", hint=hint) from error

    def path(self, name: str) -> Path | None:
        return None

    def rooted(self, marks: Sequence[str], wrapper: str) -> Archive | None:
        places = {f"/{name}/".partition(f"/{mark}/")[::2] for name in self._index() for mark in marks}
        found = sorted((f"{before}/".lstrip("/") for before, after in places if after), key=len)
        return Archive(self.file, self.prefix + found[0]) if found else None

    def _index(self) -> Mapping[str, Any]:
        return _index_of(self.file, *_stamp(self.file))


@dataclass(frozen=True)
class Layers:
    """Several trees as one: of a file that several have, the first one's counts."""

    trees: tuple[Tree, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.trees))

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "") -> list[str]:
        return sorted({name for tree in self.trees for name in tree.names(folder, suffix)})

    def has(self, name: str) -> bool:
        return any(tree.has(name) for tree in self.trees)

    def has_folder(self, name: str) -> bool:
        return any(tree.has_folder(name) for tree in self.trees)

    def read(self, name: str) -> bytes:
        return self._owner(name).read(name)

    def path(self, name: str) -> Path | None:
        return self._owner(name).path(name)

    def rooted(self, marks: Sequence[str], wrapper: str) -> Tree | None:
        found = [tree for each in self.trees if (tree := each.rooted(marks, wrapper)) is not None]
        return Layers(tuple(found)) if len(found) > 1 else next(iter(found), None)

    def _owner(self, name: str) -> Tree:
        return next((tree for tree in self.trees if tree.has(name)), self.trees[0])


def open_tree(path: Path) -> Tree:
    """A folder together with the archives that lie in it or in its "annotations", or an archive.

    Raises:
        DataError: nothing there, no such archive, a damaged or compressed one, or one with names that lead out of it.
    """
    if path.is_dir():
        inside = [file for folder in (path, path / "annotations") if folder.is_dir() for file in folder.iterdir()]
        archives = sorted(file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file())
        return Layers((Folder(path), *map(open_tree, archives))) if archives else Folder(path)
    if not path.is_file():
        raise DataError(f"There is no {path}.")
    archive = Archive(path)
    archive._index()
    return archive


def archive_files(tree: Tree) -> list[Path]:
    """The zip and tar files that a tree is read from."""
    if isinstance(tree, Layers):
        return list(dict.fromkeys(file for each in tree.trees for file in archive_files(each)))
    return [tree.file] if isinstance(tree, Archive) else []


def refuse_other_content(file: Path, published: str) -> None:
    """
    Args:
        published: the file's MD5 or SHA-1 in hexadecimal digits, as data sets publish it: it finds damage, not malice.

    Raises:
        DataError: the file cannot be read, or has another one.
    """
    digest = hashlib.new({32: "md5", 40: "sha1"}[len(published)], usedforsecurity=False)
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if digest.hexdigest() != published:
        hint = "The download is damaged, or of another release: fetch it again."
        raise DataError(f"{file} has the {digest.name.upper()} {digest.hexdigest()}; {published} is published.",
                        hint=hint)  # fmt: skip


# --- what is in an archive --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ZipMember:
    zip: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.info.file_size

    def read(self, file: Path) -> bytes:
        return self.zip.read(self.info)  # checks the CRC


@dataclass(frozen=True)
class _TarMember:
    offset: int
    size: int

    def read(self, file: Path) -> bytes:
        with file.open("rb") as opened:
            opened.seek(self.offset)
            content = opened.read(self.size)
        if len(content) < self.size:
            raise EOFError("the archive is cut off")
        return content


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=32)
def _index_of(file: Path, changed: int, size: int) -> Mapping[str, Any]:
    """The plain files of an archive by their names. The stamp of the file is part of the key: it may be replaced."""
    index = _zip_index(file) if _head(file)[:2] == b"PK" else _tar_index(file)
    for name in index:
        _refuse_evil(name, str(file))
    return index


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def _zip_index(file: Path) -> dict[str, _ZipMember]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        hint = "It may be half a download: fetch it again."
        raise DataError(f"{file} is no zip file that can be read: {error}.", hint=hint) from error
    return {info.filename: _ZipMember(archive, info) for info in archive.infolist() if not info.is_dir()}


def _tar_index(file: Path) -> dict[str, _TarMember]:
    kind = next((kind for magic, kind in _PACKED.items() if _head(file).startswith(magic)), None)
    if kind:
        raise DataError(
            f"{file} is compressed as a whole ({kind}): no file of it can be read without unpacking all before it.",
            hint="Uncompress it to a plain .tar, or unpack it.",
        )
    try:
        with tarfile.open(file, "r:") as archive:
            plain = [member for member in archive.getmembers() if member.isreg() and not member.issparse()]
    except (tarfile.TarError, *_DAMAGE) as error:
        hint = "It may be half a download: fetch it again."
        raise DataError(f"{file} is no zip or tar file that can be read: {error}.", hint=hint) from error
    return {member.name.removeprefix("./"): _TarMember(member.offset_data, member.size) for member in plain}


def _plain(names: Iterable[str], suffix: str | tuple[str, ...]) -> list[str]:
    kept = (name for name in names if "/." not in f"/{name}" and not any(each in name for each in _IGNORED))
    return sorted(name for name in kept if name.lower().endswith(suffix))


def is_safe(name: str) -> bool:
    """Whether a name stays inside its tree, on any system."""
    parts = re.split(r"[\\/]", name)  # archives of Windows have "\\"
    return bool(parts[0]) and ".." not in parts and not re.match("[A-Za-z]:", name) and "\0" not in name


def _refuse_evil(name: str, where: str) -> None:
    if not is_safe(name):
        raise DataError(f"{where}: the name {name!r} leads out of it.", hint="Such a file is not to be trusted.")

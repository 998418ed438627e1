"""Trees of files: a folder, a zip or tar that is read in place without unpacking it, or several of them as one.

Names are relative to the tree, with "/" between folders. A tree can be pickled; each process opens archives for itself.
Threads may read at the same time. No name leads out of a tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import DataError
from .archives import ArchiveFile, TarMember, index_of, is_safe, read_member, refuse_evil, refuse_large

SUFFIXES = (".zip", ".tar")
_IGNORED = ("__MACOSX/", "PaxHeader/")


class Tree(Protocol):
    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "", *, deep: bool = True) -> list[str]:
        """Return all files below `folder` that end in `suffix` (case does not matter), sorted, without hidden ones.

        Args:
            deep: look into the folders of `folder`, too.
        """

    def has(self, name: str) -> bool: ...

    def has_folder(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Raises:
        DataError: missing, unreadable, damaged, too large, or a name that leads out of the tree.
        """

    def path(self, name: str) -> Path | None:
        """Return the file itself; None where it lies in an archive."""

    def below(self, folder: str) -> Tree:
        """Return the part of this tree in `folder`, or above it where that begins with "..".

        Nothing is above the top of an archive.
        """

    def rooted(self, marks: Sequence[str], wrapper: str) -> Tree | None:
        """Return the part of this tree that has one of `marks` (files or folders) at its top; None where there is none.

        Args:
            wrapper: the folder that a data set's files usually lie in.
        """


@dataclass(frozen=True)
class Folder:
    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "", *, deep: bool = True) -> list[str]:
        inside = (self.root / folder).rglob("*") if deep else (self.root / folder).glob("*")
        found = (path for path in inside if path.is_file())
        return _plain((path.relative_to(self.root).as_posix() for path in found), suffix)

    def has(self, name: str) -> bool:
        return is_safe(name) and (self.root / name).is_file()

    def has_folder(self, name: str) -> bool:
        return (self.root / name).is_dir()

    def read(self, name: str) -> bytes:
        refuse_evil(name, str(self))
        path = self.root / name
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
                raise DataError(f"{path} is no regular file.")
            refuse_large(path.stat().st_size, name, str(path))
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        except MemoryError as error:
            raise DataError(f"{path} needs more memory than there is.") from error

    def path(self, name: str) -> Path | None:
        return self.root / name if self.has(name) else None

    def below(self, folder: str) -> Folder:
        return Folder(Path(os.path.normpath(self.root / folder)))

    def rooted(self, marks: Sequence[str], wrapper: str) -> Folder | None:
        folders = (self.root, self.root / wrapper)
        return next((Folder(folder) for folder in folders if any((folder / mark).exists() for mark in marks)), None)


@dataclass(frozen=True)
class Archive:
    """A zip, or a tar that is not compressed, below `prefix` (empty, or ending in "/")."""

    file: ArchiveFile
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.file}/{self.prefix}".rstrip("/")

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "", *, deep: bool = True) -> list[str]:
        start = self.prefix + (f"{folder}/" if folder else "")
        inside = (name for name in self._index() if name.startswith(start) and (deep or "/" not in name[len(start) :]))
        return _plain((name.removeprefix(self.prefix) for name in inside), suffix)

    def has(self, name: str) -> bool:
        return self.prefix + name in self._index()

    def has_folder(self, name: str) -> bool:
        return any(each.startswith(f"{self.prefix}{name}/") for each in self._index())

    def read(self, name: str) -> bytes:
        refuse_evil(name, str(self))
        if not self.has(name):
            raise DataError(f"{self.file} holds no {self.prefix}{name}.")
        return read_member(self.file, name, self._index()[self.prefix + name])

    def part(self, name: str) -> tuple[int, int] | None:
        """Return where the bytes of a file begin and end in a tar; None in a zip, which may have packed them.

        Raises:
            DataError: there is no such file.
        """
        if not self.has(name):
            raise DataError(f"{self.file} holds no {self.prefix}{name}.")
        member = self._index()[self.prefix + name]
        return (member.offset, member.offset + member.size) if isinstance(member, TarMember) else None

    def path(self, name: str) -> Path | None:
        return None

    def below(self, folder: str) -> Archive:
        parts = PurePosixPath(os.path.normpath(f"{self.prefix}{folder}")).parts
        return Archive(self.file, "".join(f"{part}/" for part in parts if part != "."))

    def rooted(self, marks: Sequence[str], wrapper: str) -> Archive | None:
        places = {f"/{name}/".partition(f"/{mark}/")[::2] for name in self._index() for mark in marks}
        found = sorted((f"{before}/".lstrip("/") for before, after in places if after), key=len)
        return Archive(self.file, self.prefix + found[0]) if found else None

    def _index(self) -> Mapping[str, Any]:
        return index_of(self.file)


@dataclass(frozen=True)
class Layers:
    """Several trees as one: of a file that several have, the first one's counts."""

    trees: tuple[Tree, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.trees))

    def names(self, folder: str = "", suffix: str | tuple[str, ...] = "", *, deep: bool = True) -> list[str]:
        return sorted({name for tree in self.trees for name in tree.names(folder, suffix, deep=deep)})

    def has(self, name: str) -> bool:
        return any(tree.has(name) for tree in self.trees)

    def has_folder(self, name: str) -> bool:
        return any(tree.has_folder(name) for tree in self.trees)

    def read(self, name: str) -> bytes:
        return self._owner(name).read(name)

    def path(self, name: str) -> Path | None:
        return self._owner(name).path(name)

    def below(self, folder: str) -> Layers:
        return Layers(tuple(tree.below(folder) for tree in self.trees))

    def rooted(self, marks: Sequence[str], wrapper: str) -> Tree | None:
        found = [tree for each in self.trees if (tree := each.rooted(marks, wrapper)) is not None]
        return Layers(tuple(found)) if len(found) > 1 else next(iter(found), None)

    def _owner(self, name: str) -> Tree:
        return next((tree for tree in self.trees if tree.has(name)), self.trees[0])


def open_tree(path: Path) -> Tree:
    """Open a folder together with the archives that lie in it or in its "annotations", or an archive.

    Raises:
        DataError: nothing there, no such archive, a damaged or compressed one, or one with names that lead out of it.
    """
    if path.is_dir():
        inside = [file for folder in (path, path / "annotations") if folder.is_dir() for file in folder.iterdir()]
        archives = sorted(file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file())
        return Layers((Folder(path), *map(open_tree, archives))) if archives else Folder(path)
    return open_archive(path)


def open_archive(path: ArchiveFile) -> Archive:
    """
    Raises:
        DataError: nothing there, no such archive, a damaged or compressed one, or one with names that lead out of it.
    """
    if not path.is_file():
        raise DataError(f"There is no {path}.")
    archive = Archive(path)
    archive._index()
    return archive


def archive_files(tree: Tree) -> list[Path]:
    """Return the zip and tar files that a tree is read from."""
    if isinstance(tree, Layers):
        return list(dict.fromkeys(file for each in tree.trees for file in archive_files(each)))
    return [tree.file] if isinstance(tree, Archive) and isinstance(tree.file, Path) else []


def _plain(names: Iterable[str], suffix: str | tuple[str, ...]) -> list[str]:
    kept = (name for name in names if "/." not in f"/{name}" and not any(each in name for each in _IGNORED))
    return sorted(name for name in kept if name.lower().endswith(suffix))

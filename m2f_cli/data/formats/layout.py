"""Folders: what splits are called, which files are pictures, where the pictures of an annotation lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ...errors import DataError

Found = TypeVar("Found")


class NoSplit(DataError):
    """A data set has no split of that name; its other splits may be fine."""


# How people call their splits, best first. Many data sets have no other second split than "test".
SPELLINGS = {
    "train": ("train", "train2017", "training"),
    "val": ("val", "val2017", "valid", "validation", "test"),
    "test": ("test", "test2017", "testing"),
}
NAMES = tuple(dict.fromkeys(itertools.chain(*SPELLINGS.values())))
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif")
_LOOKED_AT = 50  # pictures, to find out which folder they are in


def spellings(split: str) -> tuple[str, ...]:
    """What the folder of a split may be called, best first; the name itself goes before its relatives."""
    family = SPELLINGS.get(split) or next((names for names in SPELLINGS.values() if split in names), ())
    return tuple(dict.fromkeys((split, *family)))


def find_split(folder: Path, split: str, at: Callable[[str], Found | None]) -> tuple[Found, str, tuple[str, ...]]:
    """Find a split under one of its names.

    Args:
        at: gives what there is under a name, None where there is nothing.

    Returns:
        What was found, its name in the folder, and notes.

    Raises:
        NoSplit: no such split; says which there are.
    """
    for name in spellings(split):
        found = at(name)
        if found is not None:
            borrowed = name == "test" != split
            return found, name, (f"there is no split {split!r}: {name!r} is used",) if borrowed else ()
    known = [name for name in NAMES if at(name) is not None]
    raise NoSplit(f"{folder} has no split {split!r}.", hint=f"It has: {', '.join(known) or 'none that is known'}.")


def folder_at(*candidates: Path) -> Path | None:
    """The first of `candidates` that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its sub-folders, sorted, without hidden files.

    Raises:
        DataError: no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(f"The folder of pictures {folder} is missing.")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no pictures.", hint=f"Known kinds: {', '.join(PICTURES)}.")
    return found


def record_name(file_name: str | Path) -> str:
    """A picture's path without its suffix, with "/" between folders."""
    return Path(file_name).with_suffix("").as_posix()


def picture_folder(file_names: Sequence[str], candidates: Iterable[Path], annotations: Path) -> Path:
    """The folder that an annotation file's picture names are relative to: the first that holds one of them.

    Raises:
        DataError: none of them does.
    """
    folders = list(dict.fromkeys(candidates))
    step = max(1, len(file_names) // _LOOKED_AT)
    for folder in folders:
        if folder.is_dir() and any((folder / name).is_file() for name in file_names[::step]):
            return folder
    raise DataError(
        f"The pictures of {annotations}, such as {file_names[0]!r}, are missing.",
        hint=f"Put them into one of: {', '.join(map(str, folders))}.",
    )

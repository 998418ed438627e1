"""Folders: what splits are called, which files are images, where the images of an annotation lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ...errors import DataError
from ..records import is_there

Found = TypeVar("Found")


class NoSplit(DataError):
    """A data set has no split of that name; its other splits may be fine."""


# How people call their splits, best first. Many data sets have no other second split than "test".
SPELLINGS = {
    "train": ("train", "train2017", "training"),
    "val": ("val", "val2017", "valid", "validation", "test"),
    "test": ("test", "test2017", "testing"),
}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif")
_LOOKED_AT = 50  # images, to find out which folder they are in


def in_all_cases(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they are, with a capital, and in capitals."""
    return tuple(dict.fromkeys(case for name in names for case in (name, name.capitalize(), name.upper())))


NAMES = in_all_cases(itertools.chain(*SPELLINGS.values()))


def spellings(split: str) -> tuple[str, ...]:
    """What the folder of a split may be called, best first; the name itself goes before its relatives."""
    family = SPELLINGS.get(split) or next((names for names in SPELLINGS.values() if split in names), ())
    return tuple(dict.fromkeys((split, *family)))


def find_split(
    folder: Path, split: str, at: Callable[[str], Found | None], others: Iterable[str] = ()
) -> tuple[Found, str, tuple[str, ...]]:
    """Find a split under one of its names, whatever the case of its letters.

    Args:
        at: gives what there is under a name, None where there is nothing.
        others: further names of splits that are there. A single one, such as CVAT's "default", is what there is to
            train on where no split has a usual name.

    Returns:
        What was found, its name in the folder, and notes.

    Raises:
        NoSplit: no such split; says which there are.
    """
    for name in in_all_cases(spellings(split)):
        found = at(name)
        if found is not None:
            borrowed = name.lower() == "test" != split.lower()
            return found, name, (f"there is no split {split!r}: {name!r} is used",) if borrowed else ()
    known = [name for name in NAMES if at(name) is not None]
    unusual = [name for name in dict.fromkeys(others) if name not in known]
    if split in SPELLINGS["train"] and not known and len(unusual) == 1:
        found = at(unusual[0])
        if found is not None:
            return found, unusual[0], (f"there is no split {split!r}: {unusual[0]!r}, the only one, is used",)
    there = [*known, *unusual]
    raise NoSplit(f"{folder} has no split {split!r}.", hint=f"It has: {', '.join(there) or 'none that is known'}.")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; none where it is missing."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def folder_at(*candidates: Path) -> Path | None:
    """The first of `candidates` that is a folder."""
    return next((path for path in candidates if path.is_dir()), None)


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and its sub-folders, sorted, without hidden files.

    Raises:
        DataError: no folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"The folder of images {folder} is missing.")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no images.", hint=f"Known kinds: {', '.join(IMAGES)}.")
    return found


def record_name(file_name: str | Path) -> str:
    """An image's path without its suffix, with "/" between folders."""
    return Path(file_name).with_suffix("").as_posix()


def image_folder(file_names: Sequence[str], candidates: Iterable[Path], annotations: Path) -> Path:
    """The folder that an annotation file's image names are relative to: the first that holds one of them.

    Raises:
        DataError: none of them does.
    """
    folders = list(dict.fromkeys(candidates))
    step = max(1, len(file_names) // _LOOKED_AT)
    for folder in folders:
        if folder.is_dir() and any(is_there(folder / as_found(folder, name)) for name in file_names[::step]):
            return folder
    raise DataError(
        f"The images of {annotations}, such as {file_names[0]!r}, are missing.",
        hint=f"Put them into one of: {', '.join(map(str, folders))}.",
    )


def as_found(folder: Path, name: str) -> str:
    """A name relative to a folder. Windows writes backslashes between folders, which elsewhere are letters."""
    return name if "\\" not in name or is_there(folder / name) else name.replace("\\", "/")

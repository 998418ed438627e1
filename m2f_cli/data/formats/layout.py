"""Names of split folders, suffixes of image files, and the search for the images of an annotation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ...errors import DataError
from ..records import is_there

Found = TypeVar("Found")


class NoSplit(DataError):
    """Error of a data set without a split of that name. Its other splits may be usable."""


# Usual names of splits, best first. In many data sets "test" is the only second split.
SPELLINGS = {
    "train": ("train", "train2017", "training"),
    "val": ("val", "val2017", "valid", "validation", "test"),
    "test": ("test", "test2017", "testing"),
}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif")
_LOOKED_AT = 50  # images that are looked for in each folder


def in_all_cases(names: Iterable[str]) -> tuple[str, ...]:
    """Return names as they are, with a capital, and in capitals."""
    return tuple(dict.fromkeys(case for name in names for case in (name, name.capitalize(), name.upper())))


NAMES = in_all_cases(itertools.chain(*SPELLINGS.values()))


def spellings(split: str) -> tuple[str, ...]:
    """Return the possible folder names of a split, best first. The name itself precedes its synonyms."""
    family = SPELLINGS.get(split) or next((names for names in SPELLINGS.values() if split in names), ())
    return tuple(dict.fromkeys((split, *family)))


def find_split(
    folder: Path | str, split: str, at: Callable[[str], Found | None], others: Iterable[str] = ()
) -> tuple[Found, str, tuple[str, ...]]:
    """Find a split under one of its names, whatever the case of its letters.

    Args:
        at: returns the content under a name, or None if there is none.
        others: further names of existing splits. If no split has a usual name, a single one of these, such as CVAT's
            "default", is used for training.

    Returns:
        The content, its name in the folder, and notes.

    Raises:
        NoSplit: there is no such split. The message lists those that exist.
    """
    for name in in_all_cases(spellings(split)):
        content = at(name)
        if content is not None:
            borrowed = name.lower() == "test" != split.lower()
            return content, name, (f"there is no split {split!r}: {name!r} is used",) if borrowed else ()
    known = [name for name in NAMES if at(name) is not None]
    unusual = [name for name in dict.fromkeys(others) if name not in known]
    if split in SPELLINGS["train"] and not known and len(unusual) == 1:
        content = at(unusual[0])
        if content is not None:
            return content, unusual[0], (f"there is no split {split!r}: {unusual[0]!r}, the only one, is used",)
    there = [*known, *unusual]
    raise NoSplit(f"{folder} has no split {split!r}.", hint=f"It has: {', '.join(there) or 'none that is known'}.")


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, or an empty list if it is missing."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def folder_at(*candidates: Path) -> Path | None:
    """Return the first of `candidates` that is a folder, or None."""
    return next((path for path in candidates if path.is_dir()), None)


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, sorted, without hidden files.

    Raises:
        DataError: the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"The folder of images {folder} is missing.")
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    if not images:
        raise DataError(f"{folder} holds no images.", hint=f"Known kinds: {', '.join(IMAGES)}.")
    return images


def record_name(file_name: str | Path) -> str:
    """Return an image's path without its suffix, with "/" between folders."""
    return Path(file_name).with_suffix("").as_posix()


def image_folder(file_names: Sequence[str], candidates: Iterable[Path], annotations: Path) -> Path:
    """Return the first candidate that holds one of an annotation file's images, to which its image names are relative.

    Raises:
        DataError: no candidate holds any of the images.
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
    """Return a name relative to a folder, with "/" between folders.

    Backslashes come from Windows. Elsewhere they are ordinary characters, so a file of exactly that name takes
    precedence.
    """
    return name if "\\" not in name or is_there(folder / name) else name.replace("\\", "/")

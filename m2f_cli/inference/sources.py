"""Image sources of the command line become images with unique names.

Files, folders, globs and lists on stdin are found here; addresses, archives, tables and manifests by `storage.sources`.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..runtime.files import Distinct, safe_name
from ..storage.files import is_uri
from ..storage.items import StoredItem
from ..storage.sources import open_source
from ..storage.sources.archive import SUFFIXES as ARCHIVES
from ..storage.sources.base import IMAGES, entry
from ..structures.images import decode_image, read_image

VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"))
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins as UTF-16 LE
RUN_MARK = ".predict.jsonl"  # the journal of a predict run: a folder with one holds results, not images to predict


class ImageSource(NamedTuple):
    """Input image.

    Attributes:
        path: file of the image; the shown URI of one that is no file of this machine.
        name: name of its results: relative, with "/" between folders, without a suffix.
        item: the way to its bytes; None for a file.
    """

    path: Path | str
    name: str
    item: StoredItem | None = None

    @property
    def local(self) -> Path | None:
        """File of this machine that holds the image, such as a zip; None where there is none."""
        return Path(self.path) if self.item is None else self.item.path

    def image(self) -> np.ndarray:
        """Read the image. (H, W, 3) uint8, RGB.

        Raises:
            DataError: it cannot be read; see `structures.images.read_image`.
        """
        if self.item is None:
            return read_image(self.path)
        return decode_image(self.item.read(), self.item.uri)


def expand(sources: Iterable[str | Path], stdin: Iterable[str] | None = None) -> Iterator[ImageSource]:
    """Find the images behind `sources`, lazily and in a stable order.

    Folders are searched with their sub-folders, in sorted order, by extension. Hidden files and results of earlier runs
    are left out. A name keeps the sub-folders below its source. Where two names would still be equal, the later one
    gets its folder, its extension or a number. A file that occurs twice is yielded once.

    Args:
        sources: files, folders, glob patterns, "-" for paths on stdin, one per line, or what `storage.sources` reads:
            URIs, archives, parquet files, manifests, Hugging Face data sets.
        stdin: the lines that "-" reads; `sys.stdin` by default.

    Raises:
        DataError: a source does not exist, has no image, or is a video or camera, which cannot be read yet; or a list
            gives one id to two images.
    """
    names = _Names()
    seen: set[str] = set()
    for source in itertools.chain.from_iterable(map(_unfolded, map(str, sources))):
        for found in _find(source, _stdin() if stdin is None else stdin):
            path, key = (found[0], _real(found[0])) if isinstance(found, tuple) else _of_item(found)
            if key in seen:
                continue
            seen.add(key)
            if isinstance(found, tuple):
                yield ImageSource(found[0], names.give(*found))
            else:
                is_file = isinstance(path, Path)
                yield ImageSource(path, names.give_item(found), None if is_file else found)


def local_files(sources: Iterable[str | Path], purpose: str) -> Iterator[Path]:
    """Yield the image files behind `sources`; see `expand`.

    Args:
        purpose: what takes files alone, for the message.

    Raises:
        DataError: an image is no file of this machine, or as in `expand`.
    """
    for source in expand(sources):
        if not isinstance(source.path, Path):
            raise DataError(f"{source.path} is no file of this machine.", hint=f"{purpose} takes local files.")
        yield source.path


def _of_item(item: StoredItem) -> tuple[Path | str, str]:
    """Return the file of an item, or the shown URI of one that is no file; and its identity."""
    if item.is_file and item.path is not None:
        real = _real(item.path)
        return item.path, f"{real} {item.id}" if item.origin else real
    return item.uri, item.key


def _unfolded(source: str) -> Iterator[str]:
    """Yield the matches of a local pattern of archives or tables, such as shards/*.tar; other sources as they are."""
    if is_uri(source) or os.path.exists(source) or not glob.has_magic(source):
        yield source
    elif source.lower().endswith((*ARCHIVES, ".parquet")):
        matches = _matches(source)
        if not matches:
            raise DataError(f"The pattern {source!r} matches nothing.", hint=f"It was looked up from {Path.cwd()}.")
        yield from matches
    else:
        yield source


def _find(source: str, stdin: Iterable[str]) -> Iterator[tuple[Path, Path] | StoredItem]:
    """Yield the images of one source: an item, or a file with the folder that its name is relative to."""
    if source == "-":
        for line in stdin:
            yield from _in_line(line.rstrip("\r\n"))
    elif (items := open_source(source)) is not None:
        yield from items
    elif os.path.isdir(source):
        yield from _in_folder(Path(source))
    elif os.path.exists(source):
        _refuse_video(Path(source))
        yield Path(source), Path(source).parent
    elif glob.has_magic(source):
        yield from _in_glob(source)
    else:
        raise _missing(source)


def _real(path: Path) -> str:
    """Return a path with links resolved; the path itself where it cannot be the name of a file."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _stdin() -> Iterator[str]:
    """Yield the lines of stdin as names of files. Bytes that are not UTF-8 are kept.

    Raises:
        DataError: the text is in UTF-16 or UTF-32, as `>` of PowerShell writes it.
    """
    if sys.stdin is None:
        raise DataError("There is no list on stdin: it is closed.", hint="Give files, folders or globs.")
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin)):
        if isinstance(line, str):  # stdin is replaced, as a notebook does
            yield line.removeprefix("\ufeff") if number == 0 else line
            continue
        if number == 0 and line.startswith(_OTHER_MARKS):
            raise DataError("The list on stdin is text in UTF-16 or UTF-32.", hint="Write it as UTF-8.")
        yield os.fsdecode(line.removeprefix(codecs.BOM_UTF8) if number == 0 else line)


def _in_line(line: str) -> Iterator[tuple[Path, Path] | StoredItem]:
    """Yield the images of a line of a list. A path that is no image is yielded, and reading it fails later."""
    name = line if os.path.exists(line) else line.strip()
    if not name:
        return
    if is_uri(name):
        yield entry(name, "", "the list on stdin", None)
        return
    try:
        yield from _in_folder(Path(name)) if os.path.isdir(name) else [(Path(name), Path(name).parent)]
    except DataError:
        yield Path(name), Path(name).parent


def _in_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    has_images, videos = False, 0
    for path in _walk(folder, set()):
        videos += path.suffix.lower() in VIDEOS
        if path.suffix.lower() in IMAGES:
            has_images = True
            yield path, folder
    if not has_images:
        more = f" It holds {videos} video file(s), which cannot be read yet." if videos else ""
        raise DataError(
            f"No images in {folder} or below.{more}", hint=f"Looked for {', '.join(sorted(IMAGES))}, in any case."
        )


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in visited:  # a link that leads back
        return
    is_root = not visited
    visited.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    if not is_root and any(each.name == RUN_MARK for each in entries):
        return
    for each in entries:
        if each.name.startswith("."):
            continue
        if _is_folder(each):
            yield from _walk(Path(each.path), visited)
        else:
            yield Path(each.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one; False for a link that leads nowhere or into a closed folder."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _in_glob(pattern: str) -> Iterator[tuple[Path, Path]]:
    root = Path(*_until_magic(Path(pattern).parts))
    matches = [Path(match) for match in _matches(pattern) if os.path.isfile(match)]
    images = [match for match in matches if match.suffix.lower() in IMAGES]
    if not images:
        what = f"{len(matches)} file(s), none of them an image" if matches else "nothing"
        raise DataError(f"The pattern {pattern!r} matches {what}.", hint=f"It was looked up from {Path.cwd()}.")
    for match in images:
        yield match, root


def _matches(pattern: str) -> list[str]:
    """Return the sorted matches of a pattern; none for one with a NUL, which no path has and `glob` raises for."""
    return [] if "\0" in pattern else sorted(glob.glob(pattern, recursive=True))


def _until_magic(parts: tuple[str, ...]) -> list[str]:
    return list(itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1]))


def _refuse_video(path: Path) -> None:
    if path.suffix.lower() in VIDEOS:
        raise DataError(
            f"{path} is a video; this version reads images only.",
            hint=f"Write its frames to a folder first, for example: ffmpeg -i {path.name} frames/%06d.png",
        )


def _missing(source: str) -> DataError:
    if source.isdigit():
        return DataError(f"{source!r} is no file; cameras cannot be read yet.", hint="Give files, folders or globs.")
    return DataError(f"There is no file or folder {source!r}.", hint=f"It was looked up from {Path.cwd()}.")


def _folded(name: str) -> str:
    """Return the form in which two names are equal if their results would be the same files."""
    return safe_name(name).casefold()


class _Names:
    """Registry of unique names. Names that differ only in letter case are equal, as on some file systems."""

    def __init__(self) -> None:
        self.taken = Distinct("images")
        self.owners: dict[str, str] = {}  # folder of the file or item, or the place in a list that gives the name
        self.numbers: dict[str, int] = {}

    def give(self, path: Path, base: Path) -> str:
        """Return a free name for a file, from the folder `base` on."""
        relative = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
        plain, folder = relative.with_suffix("").as_posix(), path.absolute().parent
        choices = (f"{folder.name}/{path.stem}" if folder.name else "", f"{plain}_{path.suffix.lstrip('.')}")
        return self._free(plain, str(folder), choices)

    def give_item(self, item: StoredItem) -> str:
        """Return the id of an item, or a free name like it where nobody gave the id.

        Raises:
            DataError: a list gives the same id to another image.
        """
        name = safe_name(item.id)
        if not item.origin:
            return self._free(name, item.folder, (f"{item.folder}/{name}" if item.folder else "",))
        if self.taken.owner(_folded(name)) is not None:
            other = self.owners.get(_folded(name), "an earlier image")
            said = f"{item.origin} has the id {item.id!r}, which {other} has, too"
            raise DataError(f"{said}: their results would be the same files.", hint="Give each image an id of its own.")
        return self._take(name, item.origin)

    def _take(self, name: str, owner: str) -> str:
        self.taken.add(name, _folded(name))
        self.owners[_folded(name)] = owner
        return name

    def _free(self, plain: str, folder: str, choices: tuple[str, str] | tuple[str]) -> str:
        owner = self.owners.get(_folded(plain))
        others = [name for name in choices[:1] if name and owner is not None and owner != folder]
        others += choices[1:]
        if owner is None:  # one of its folders is called as the results of another image are
            others.append(plain.replace("/", "_"))
        named = others[-1] if owner is None else plain
        name = next((name for name in (plain, *others) if self.taken.owner(_folded(name)) is None), None)
        if name is not None:
            return self._take(name, folder)
        for number in itertools.count(self.numbers.get(named, 2)):
            if self.taken.owner(_folded(f"{named}-{number}")) is None:
                self.numbers[named] = number + 1
                break
        return self._take(f"{named}-{number}", folder)

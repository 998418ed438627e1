"""Image sources of the command line: files, folders, globs and lists on stdin become images with unique names."""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..runtime.files import Distinct, safe_name

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
VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"))
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins as UTF-16 LE
RUN_MARK = ".predict.jsonl"  # the journal of a predict run: a folder with one holds results, not images to predict


class ImageSource(NamedTuple):
    """Input image.

    Attributes:
        path: file of the image.
        name: name of its results: relative, with "/" between folders, without a suffix.
    """

    path: Path
    name: str


def expand(sources: Iterable[str | Path], stdin: Iterable[str] | None = None) -> Iterator[ImageSource]:
    """Find the images behind `sources`, lazily and in a stable order.

    Folders are searched with their sub-folders, in sorted order, by extension. Hidden files and results of earlier runs
    are left out. A name keeps the sub-folders below its source. Where two names would still be equal, the later one
    gets its folder, its extension or a number. A file that occurs twice is yielded once.

    Args:
        sources: files, folders, glob patterns, or "-" for paths on stdin, one per line.
        stdin: the lines that "-" reads; `sys.stdin` by default.

    Raises:
        DataError: a source does not exist, has no image, or is a video, camera or address, which cannot be read yet.
    """
    names = _Names()
    seen: set[str] = set()
    for source in sources:
        for path, base in _find(str(source), _stdin() if stdin is None else stdin):
            real = _real(path)
            if real not in seen:
                seen.add(real)
                yield ImageSource(path, names.give(path, base))


def _find(source: str, stdin: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the images of one source, each with the folder that its name is relative to."""
    if source == "-":
        for line in stdin:
            yield from _in_line(line.rstrip("\r\n"))
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


def _in_line(line: str) -> Iterator[tuple[Path, Path]]:
    """Yield the images of a line of a list. A path that is no image is yielded, and reading it fails later."""
    name = line if os.path.exists(line) else line.strip()
    if not name:
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
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    if not is_root and any(entry.name == RUN_MARK for entry in entries):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), visited)
        else:
            yield Path(entry.path)


def _in_glob(pattern: str) -> Iterator[tuple[Path, Path]]:
    root = Path(*_until_magic(Path(pattern).parts))
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(match)]
    images = [match for match in matches if match.suffix.lower() in IMAGES]
    if not images:
        what = f"{len(matches)} file(s), none of them an image" if matches else "nothing"
        raise DataError(f"The pattern {pattern!r} matches {what}.", hint=f"It was looked up from {Path.cwd()}.")
    for match in images:
        yield match, root


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
    if "://" in source:
        return DataError(f"{source!r} is an address; images are not downloaded.", hint="Download it, give the file.")
    return DataError(f"There is no file or folder {source!r}.", hint=f"It was looked up from {Path.cwd()}.")


def _folded(name: str) -> str:
    """Return the form in which two names are equal if their results would be the same files."""
    return safe_name(name).casefold()


class _Names:
    """Registry of unique names. Names that differ only in letter case are equal, as on some file systems."""

    def __init__(self) -> None:
        self.taken = Distinct("images")
        self.owners: dict[str, Path] = {}

    def give(self, path: Path, base: Path) -> str:
        relative = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
        plain = relative.with_suffix("").as_posix()
        name = next(name for name in self._choices(plain, path) if self.taken.owner(_folded(name)) is None)
        self.taken.add(name, _folded(name))
        self.owners[_folded(name)] = path
        return name

    def _choices(self, plain: str, path: Path) -> Iterator[str]:
        yield plain
        folder, owner = path.absolute().parent, self.owners.get(_folded(plain))
        if owner is not None and folder.name and owner.absolute().parent != folder:
            yield f"{folder.name}/{path.stem}"
        yield f"{plain}_{path.suffix.lstrip('.')}"
        if owner is None:  # one of its folders is called as the results of another image are
            plain = plain.replace("/", "_")
            yield plain
        for number in itertools.count(2):
            yield f"{plain}-{number}"

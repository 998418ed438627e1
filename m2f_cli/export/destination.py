"""The place of an export on disk: what may be replaced, and the move of finished files to their names."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from ..errors import ConfigError, DataError, ExportError, M2FError
from ..inference.engines.base import RECORD
from ..runtime import documents
from ..runtime.files import lies_in, share_as_usual
from ..runtime.locks import is_lock, locked, staged


def check_destination(path: Path, format: str, *, is_folder: bool, overwrite: bool) -> None:
    """Refuse a path that an export may not write to.

    Args:
        path: the file or folder of the export.
        format: name of the format.
        is_folder: the format is a folder.
        overwrite: an earlier export of this format may be replaced.

    Raises:
        ConfigError: something else lies there, or it is not to be replaced.
    """
    if path.is_dir() and is_folder:
        _check_folder(path, format, overwrite)
        return
    _check_file(path, overwrite)
    record = record_path(path, is_folder=is_folder)
    if not is_folder and _format_in(record) is None:
        _check_file(record, overwrite)


def _check_folder(path: Path, format: str, overwrite: bool) -> None:
    """Refuse a folder that an export may not write to.

    Raises:
        ConfigError: the folder is not empty, and is no export of this format or is not to be replaced.
    """
    if all(is_lock(each) for each in path.iterdir()):
        return
    if _format_in(path / RECORD) != format:
        raise ConfigError(
            f"The folder {path} is not empty, and no earlier export as {format}: there is no {RECORD} that says so.",
            hint="Choose another --out: --overwrite replaces only what such an export wrote.",
        )
    if not overwrite:
        raise ConfigError(f"{path} exists already.", hint="Choose another --out, or pass --overwrite.")


def _check_file(path: Path, overwrite: bool) -> None:
    """Refuse a path that an export may not write to.

    Raises:
        ConfigError: the path is a folder, or a file that is not to be replaced.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, and the export writes a file there.", hint="Choose another --out.")
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"{path} exists already.", hint="Choose another --out, or pass --overwrite.")


def _format_in(record: Path) -> str | None:
    """Return the format in an export.json; None where the file is missing or no such record."""
    if not record.is_file():
        return None
    try:
        tree = documents.read_json(record)
    except DataError:
        return None
    is_record = isinstance(tree, dict) and {"schema_version", "file", "format", "comparisons"} <= tree.keys()
    return tree["format"] if is_record and isinstance(tree["format"], str) else None


@contextmanager
def staged_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield the path of the file in a hidden folder beside `path`. At the end, the content of that folder is moved.

    Raises:
        ConfigError: another process writes there.
        ExportError: the files cannot be written, for example without space or permission.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staged(path, "An export"))
            stack.enter_context(locked(path, "Another command") if path.is_dir() else nullcontext())
        except ConfigError:  # another process is at work
            raise
        except M2FError as error:
            raise ExportError(error.message) from error
        yield from _moved_at_the_end(folder, path, overwrite)


def _moved_at_the_end(folder: Path, path: Path, overwrite: bool) -> Iterator[Path]:
    try:
        yield folder / path.name
        share_as_usual(folder)
        _move(folder, path, overwrite)
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}.") from error


def _move(folder: Path, path: Path, overwrite: bool) -> None:
    """Move the written files to their final names. Other files there stay.

    The files beside the main file are moved first, so that the main file is never without them. Of a folder, the record
    is moved last.

    Raises:
        ConfigError: another file has the name of a file beside the main file. Nothing has been moved then.
    """
    part = folder / path.name
    inside = {part: path}
    if part.is_dir() and path.is_dir():
        inside = {each: path / each.relative_to(part) for each in part.rglob("*") if not each.is_dir()}
    beside = {each: path.parent / each.name for each in folder.iterdir() if each != part}
    for source in inside if inside.keys() != {part} else ():
        if not lies_in(path, str(source.relative_to(part))):
            raise ConfigError(f"A link leads {inside[source]} out of the folder {path}.", hint="Remove the link.")
    for source, target in {**beside, **inside}.items():
        if source in inside or not (target.name == RECORD or _is_same(source, target)):
            _check_file(target, overwrite)
    for source, target in [*beside.items(), *sorted(inside.items(), key=lambda move: move[0].name == RECORD)]:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _is_same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


def record_path(path: Path, *, is_folder: bool) -> Path:
    """Return the path of export.json: inside a folder, beside a file."""
    return path / RECORD if is_folder else path.parent / RECORD

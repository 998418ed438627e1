"""Files written whole or not at all, and names from data that never lead out of their folder."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import M2FError
from .text import json_text

LONGEST_PART = 180  # bytes of one part of a name; file systems allow 255, and a suffix or a mark may follow
_DRIVE = re.compile(r"^[A-Za-z]:")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')  # control characters, and what Windows does not allow in a name
_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names that Windows keeps for devices


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its name at the end and is removed if anything goes wrong.

    Raises:
        M2FError: the file cannot be written: no space, no permission, a folder that is a file.
    """
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an `OSError` of this block into one sentence about `path`.

    Raises:
        M2FError: the block raised `OSError`; the reason is the operating system's.
    """
    try:
        yield
    except OSError as error:
        raise M2FError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all.

    Raises:
        M2FError: the file cannot be written.
    """
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_json(path: Path, tree: Any, *, indent: int | None = None) -> None:
    """Write JSON in UTF-8, whole or not at all.

    Raises:
        M2FError: the file cannot be written.
    """
    write_text(path, json_text(tree, indent=indent) + "\n")


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        M2FError: it cannot be made.
    """
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)


def safe_name(name: str) -> str:
    """Return a relative name with "/" between its parts that stays below whatever folder it is joined to.

    The name may come from anybody's data: an absolute path, "..", a drive, backslashes, control characters. A plain
    relative name comes back unchanged. Parts that are too long for a file system are cut and end in a hash.
    """
    parts = _DRIVE.sub("", name.replace("\\", "/")).split("/")
    kept = [_safe_part(part) for part in parts if part.strip(" .")]
    return "/".join(kept) or f"unnamed-{_hash(name)}"


def output_path(folder: Path, name: str, suffix: str = "") -> Path:
    """Return the path below `folder` for a file whose name comes from data.

    Args:
        name: may hold sub-folders; see `safe_name`.
        suffix: is added to the name as it is.
    """
    return folder / f"{safe_name(name)}{suffix}"


def _safe_part(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).strip(" ")
    if _DEVICE.match(part):
        part = f"_{part}"
    if len(os.fsencode(part)) <= LONGEST_PART:
        return part
    mark = f"~{_hash(part)}"
    return os.fsencode(part)[: LONGEST_PART - len(mark)].decode(errors="ignore") + mark


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:10]

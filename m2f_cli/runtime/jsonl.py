"""Files of JSON lines that are appended to, and that the kill of a process leaves readable.

Each object in them has a checksum (`checksums.py`), which `parse` compares and takes away.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from . import checksums
from .files import open_to_read, refuse_special, writing_to
from .text import json_text

LONGEST_LINE = 1 << 30  # bytes; the masks of one image take a few million
_BLOCK = 1 << 16  # bytes


class JsonLines:
    """A file that takes one value a line. Each line is with the operating system when `append` returns.

    Args:
        path: is made with its folder, or gone on with; half a line at its end is cut off.
        fresh: begin with an empty file.
        compact: write no spaces.

    Raises:
        ConfigError: the path is a link, a pipe or a device.
        M2FError: the file cannot be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False, compact: bool = False):
        self.path, self.separators = path, (",", ":") if compact else None
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_special(path)
            self.file = path.open("wb" if fresh else "ab", buffering=0)  # nothing waits in memory for `close`
            self.size = whole_bytes(path)
            self.file.truncate(self.size)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()

    def append(self, value: Any) -> int:
        """Write one line and return where it begins.

        Raises:
            M2FError: it cannot be written, or not as a whole.
        """
        text = json_text(value, separators=self.separators)
        line = (checksums.sealed(text) if isinstance(value, dict) and value else text).encode() + b"\n"
        start, self.size = self.size, self.size + len(line)
        with writing_to(self.path):
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return start


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read it, and turn an `OSError` of this block into one sentence about `path`."""
    try:
        with open_to_read(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield where each line begins, and its bytes. Half a line at the end is left out.

    Raises:
        DataError: a line is longer than `LONGEST_LINE`, or the path is no file that can be read.
    """
    with _opened(path) as file:
        start = 0
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            yield start, line
            start += len(line)
        if len(line) == LONGEST_LINE:
            raise DataError(f"{path} has a line of more than {LONGEST_LINE:,} bytes.")


def whole_bytes(path: Path) -> int:
    """Return the length of a file without half a line at its end.

    Raises:
        DataError: the path is no file that can be read.
    """
    with _opened(path) as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def parse(line: bytes) -> Any:
    """Return the value of a line, without its checksum.

    Raises:
        ValueError: it does not fit its checksum, is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(checksums.unsealed(line))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parsed_lines(path: Path, hint: str) -> Iterator[tuple[bytes, Any]]:
    """Yield each line as bytes and as a value. Half a line at the end is left out.

    Args:
        hint: what to do about a damaged line.

    Raises:
        DataError: a line is damaged.
    """
    for number, (_, line) in enumerate(whole_lines(path), 1):
        try:
            yield line, parse(line)
        except ValueError as error:
            raise DataError(f"{path} is damaged in line {number}: {error}.", hint=hint) from error


def has_checksums(path: Path) -> bool:
    """Return False if a file was begun by a version that wrote no checksums."""
    _, first = next(whole_lines(path), (0, b""))
    return not first or checksums.is_sealed(first)


def remarks(path: Path) -> list[str]:
    """Return what a user should know about a file that is gone on with: that damage to it cannot be seen."""
    if not path.is_file() or has_checksums(path):
        return []
    return [f"An older m2f began {path} without checksums: whether its lines are damaged is not checked."]

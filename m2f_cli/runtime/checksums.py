"""Checksums inside of files: they tell a file that changed on a disk or on its way. They do not tell who wrote it.

* A JSON object, as a line of a journal or as a file, ends in `"crc32": "…"`, the CRC-32 of all bytes before that entry.
* A YAML file ends in a comment with the CRC-32 of all bytes before it.
* A large binary file ends in its SHA-256, behind its content.

Files of older versions have none of these, and are taken as they are.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import IO

from .files import open_to_read

_TAIL = b', "crc32": "........"}'  # a dot stands for a hexadecimal digit
_COMMENT = b"# crc32: ........\n"
_TRAILER = b"\nm2f-sha256:" + 64 * b"."
_CHUNK = 1 << 20  # bytes
_MOST_WRONG = 2  # bytes of a mark that may be damaged without making the file pass for an older one


class ChecksumError(ValueError):
    """Error of content that is not what was written."""


# --- text -------------------------------------------------------------------------------------------------------------


def sealed(text: str) -> str:
    """Return the text of a JSON object that is not empty, without a line end, with its checksum as the last entry."""
    body = text.removesuffix("}").rstrip()
    return body + _filled(_TAIL, body.encode())


def unsealed(content: bytes) -> bytes:
    """Return the text of a JSON object, or of a line, without its checksum. One without a checksum is not changed.

    Raises:
        ChecksumError: the checksum is not that of the content.
    """
    text = content.removesuffix(b"\n")
    body = _checked(text, _TAIL)
    return content if body is None else body + b"}"


def is_sealed(content: bytes) -> bool:
    """Return True if the text of a JSON object, or of a line, has a checksum, right or wrong."""
    return _is_marked(content.removesuffix(b"\n"), _TAIL)


def sealed_yaml(text: str) -> str:
    """Return a YAML text that ends in a line end with its checksum as a comment."""
    return text + _filled(_COMMENT, text.encode())


def is_sealed_yaml(content: bytes) -> bool:
    """Return True if a YAML text has a checksum, right or wrong."""
    return _is_marked(content, _COMMENT)


def check_yaml(content: bytes) -> None:
    """Check a YAML text, if it has a checksum.

    Raises:
        ChecksumError: the checksum is not that of the content.
    """
    _checked(content, _COMMENT)


def _filled(mark: bytes, content: bytes) -> str:
    return mark.replace(b"........", b"%08x" % zlib.crc32(content)).decode()


def _checked(content: bytes, mark: bytes) -> bytes | None:
    """Return what stands before a mark; None where there is no mark."""
    if not _is_marked(content, mark):
        return None
    body, end = content[: -len(mark)], content[-len(mark) :]
    if end != _filled(mark, body).encode():
        raise ChecksumError("it does not fit its checksum")
    return body


def _is_marked(content: bytes, mark: bytes) -> bool:
    """Tell whether content ends in a mark, of which a few bytes may be damaged."""
    end = content[-len(mark) :]
    wrong = sum(there != wanted for there, wanted in zip(end, mark, strict=False) if wanted != ord("."))
    return len(end) == len(mark) and wrong <= _MOST_WRONG


# --- large files ------------------------------------------------------------------------------------------------------


def append_digest(path: Path) -> None:
    """Write the SHA-256 of a file at its own end. Readers of zip archives pass over it.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        trailer = _TRAILER.rstrip(b".") + _digest(file, size)
        file.seek(size)
        file.write(trailer)


def has_digest(path: Path) -> bool:
    """Return True if a file has a digest at its end, right or wrong.

    Raises:
        OSError: the file cannot be read.
    """
    with open_to_read(path) as file:
        return _is_marked(_trailer(file)[1], _TRAILER)


def check_digest(path: Path) -> None:
    """Check a file, if it has a digest at its end.

    Raises:
        ChecksumError: the digest is not that of the content.
        OSError: the file cannot be read.
    """
    with open_to_read(path) as file:
        size, trailer = _trailer(file)
        if _is_marked(trailer, _TRAILER) and trailer != _TRAILER.rstrip(b".") + _digest(file, size):
            raise ChecksumError("it does not fit its checksum")


def _trailer(file: IO[bytes]) -> tuple[int, bytes]:
    """Return the size of the content, and what follows it."""
    size = max(0, file.seek(0, os.SEEK_END) - len(_TRAILER))
    file.seek(size)
    return size, file.read()


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first bytes of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()

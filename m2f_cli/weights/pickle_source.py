"""Bytes of a file, and a limit of the memory that reading it may take."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..runtime.files import open_to_read


class Damaged(Exception):
    """Error of a file that makes no sense. The message is a clause without a full stop, such as "it ends too early"."""


class PickleSource:
    """Bytes of a mapped file, or bytes in memory. Writes to mapped bytes stay in this process.

    Raises:
        OSError: the file cannot be opened.
        Damaged: the file is empty.
    """

    def __init__(self, origin: Path | bytes):
        self._file = None if isinstance(origin, bytes) else open_to_read(origin)
        self.data: bytes | mmap.mmap = b""
        if self._file is None:
            self.data = origin
        else:
            try:
                self.data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError as error:
                self._file.close()
                raise Damaged("it is empty") from error
        self.is_mapped = self._file is not None

    def __enter__(self) -> PickleSource:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file. Mapped bytes stay mapped as long as a tensor needs them."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self.data)

    def cut(self, start: int, size: int) -> bytes:
        """Return a copy of a part."""
        if self._file is None:
            return bytes(memoryview(self.data)[start : start + size])
        self._file.seek(start)
        return self._file.read(size)

    def fill(self, buffer: Any, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on. Reading is faster than copying mapped bytes."""
        view = memoryview(buffer).cast("B")
        if self._file is None:
            view[:] = memoryview(self.data)[start : start + len(view)]
            return
        self._file.seek(start)
        if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise Damaged("it became shorter while it was read")


class Budget:
    """Limit of the bytes of all arrays and texts, so that a small file cannot ask for much memory."""

    def __init__(self, file_size: int):
        self._left = 6 * file_size + (1 << 20)  # the most copies that any of the known forms needs is 3

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Damaged("what is made of it is many times larger than the file itself")


def refused(name: str) -> WeightsError:
    """Return the error for a file with a name that weights never need."""
    return WeightsError(
        f"The file was refused: it asks for {name}, which could run code on this machine, and weights never need it.",
        hint="If you trust whoever made it, save its weights as safetensors there and load that.",
    )

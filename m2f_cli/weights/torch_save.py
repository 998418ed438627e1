"""Files that PyTorch writes to: a full disk is an `OSError`, not PyTorch's RuntimeError about a position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class ErrorKeepingFile:
    """File that keeps the error of a failed write, because PyTorch raises another one."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def torch_file(path: Path) -> Iterator[ErrorKeepingFile]:
    """Open a file for `torch.save`.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        keeping = ErrorKeepingFile(file)
        try:
            yield keeping
        except RuntimeError:
            if keeping.error is not None:
                raise keeping.error from None
            raise

"""Tar archives of shards: equal members in equal order give equal bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ...runtime.files import atomic


class ShardArchive:
    """Tar archive that is being written."""

    def __init__(self, file: tarfile.TarFile):
        self.file = file

    def add(self, name: str, content: bytes) -> None:
        """Add a file. Its time, owner and mode are always the same."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.file.addfile(member, io.BytesIO(content))

    def add_png(self, name: str, image: Image.Image) -> None:
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        self.add(name, encoded.getvalue())


@contextmanager
def archive(path: Path) -> Iterator[ShardArchive]:
    """Open an archive that gets its name at the end, whole or not at all.

    Raises:
        M2FError: the file cannot be written.
    """
    with atomic(path) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as file:
        yield ShardArchive(file)

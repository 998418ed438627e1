"""Folder of the results of a run, on this machine. `inference/remote.py` has the one for folders of a store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..runtime.files import writing_to


class ResultsFolder:
    """Folder of results on this machine.

    Attributes:
        folder: the folder.
        shown: its name in messages.
        uri: None; a folder of a store has one.
    """

    def __init__(self, folder: Path):
        self.folder, self.shown = folder, str(folder)
        self.uri: str | None = None

    def has(self, name: str) -> bool:
        """Return True if a file of the results is there. Names are relative, with "/" between folders."""
        return (self.folder / name).is_file()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with writing_to(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)

    def keep(self, names: Iterable[str]) -> None:
        """Keep files that were written to the folder."""

    def appended(self) -> None:
        """Take note of a line that was appended to the journal."""

    def flush(self) -> None:
        """Keep all lines of the journal."""

    def conclude(self) -> None:
        """Keep all files that are in the folder."""

    def clear(self) -> None:
        """Remove what a run needs no more after its end."""

"""The memory of a stage that was stopped: the entries of the pictures that are done, one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from ...runtime.files import refuse_link, writing_to


class PrepareJournal:
    """Entries of a table's pictures, kept in a hidden file beside it until the table is written.

    Args:
        table: None for a stage without a table: nothing is remembered.
        fresh: forget what an earlier run left.
    """

    def __init__(self, table: Path | None, *, fresh: bool = False):
        self.entries: dict[str, Any] = {}
        self.path = None if table is None else table.with_name(f".{table.name}.journal")
        self.file: IO[bytes] | None = None
        if self.path is None:
            return
        with writing_to(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            refuse_link(self.path)
            self.file = self.path.open("w+b" if fresh else "a+b")
        self._read()

    @property
    def is_used(self) -> bool:
        return self.path is not None

    def __enter__(self) -> PrepareJournal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def append(self, name: str, entry: Any) -> None:
        if self.file is None:
            return
        # What a later run reads must be what this one has: json knows no tuples and no whole-number keys.
        line = json.dumps([name, entry])
        self.entries[name] = json.loads(line)[1]
        with writing_to(self.path):
            self.file.write(line.encode() + b"\n")
            self.file.flush()

    def remove(self) -> None:
        if self.file is not None:
            self.file.close()
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        offset = 0
        self.file.seek(0)
        for line in self.file:
            try:
                name, entry = json.loads(line)
            except ValueError:  # the run was killed while it wrote this line
                break
            self.entries[name] = entry
            offset += len(line)
        self.file.truncate(offset)

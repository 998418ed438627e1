"""Journal of an interrupted stage: the entries of the finished images, one line each."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ...runtime.jsonl import JsonLines, parse, whole_lines


class PrepareJournal:
    """Entries of a table's images, kept in a hidden file beside it until the table is written.

    Args:
        table: the table. With None, for a stage without a table, nothing is kept.
        fresh: True to discard the entries of an earlier run.
    """

    def __init__(self, table: Path | None, *, fresh: bool = False):
        self.entries: dict[str, Any] = {}
        self.lines = None if table is None else JsonLines(_path(table), fresh=fresh)
        if self.lines is not None:
            for _, line in whole_lines(self.lines.path):
                self._keep(line)

    @property
    def is_used(self) -> bool:
        return self.lines is not None

    def __enter__(self) -> PrepareJournal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lines is not None:
            self.lines.close()

    def append(self, name: str, entry: Any) -> None:
        if self.lines is not None:
            # A later run must read the same entries, but JSON has neither tuples nor whole-number keys.
            self.entries[name] = json.loads(json.dumps(entry))
            self.lines.append({"name": name, "entry": entry})

    def remove(self) -> None:
        if self.lines is not None:
            self.lines.close()
            self.lines.path.unlink(missing_ok=True)

    def _keep(self, line: bytes) -> None:
        try:
            tree = parse(line)
            name, entry = (tree["name"], tree["entry"]) if isinstance(tree, dict) else tree
            self.entries[name] = entry
        except (ValueError, KeyError, TypeError):  # of another program, or damaged: the image is prepared again
            return


def remove_left(table: Path) -> None:
    """Remove the journal of a table that is complete. A process that was killed in between leaves one."""
    with contextlib.suppress(OSError):  # a complete data set may lie where nothing can be changed
        _path(table).unlink(missing_ok=True)


def _path(table: Path) -> Path:
    return table.with_name(f".{table.name}.journal")

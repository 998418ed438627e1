"""Shards of a predict run, written from its journal.

Image number i of the journal belongs to shard i // size, whether it failed or not. So an image that failed and is done
later changes its own shard alone, and images that are added come last. A shard that exists is right: it is written as
soon as its last image is finished, and removed before an image of it gets another row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import plugins
from ..errors import ConfigError, DataError
from ..results.rows import Row
from ..results.shards.base import Provenance, ShardFormat
from ..results.shards.tables import ERRORS, check_installed, write_table
from ..results.writers import folder_of
from ..runtime.jsonl import parse, whole_lines
from ..structures import Task
from .sources import RUN_MARK
from .stream import thread_pool

if TYPE_CHECKING:
    from .journal import Journal

FAILURES = "errors.parquet"
SIZE = 1000  # images


def formats_for(names: Sequence[str], task: Task | None) -> dict[str, ShardFormat]:
    """Return the formats of shards among some names of formats.

    Args:
        names: names of formats of any kind.
        task: the task of the results; None where it is not known yet.

    Raises:
        ConfigError: a format does not fit the task.
        MissingDependency: pyarrow is not installed, which writes the table of the images that failed.
    """
    table = plugins.table("shards")
    formats: dict[str, Any] = {name: plugins.get("shards", name) for name in names if name in table}
    for name, each in formats.items():
        check_installed(f"The format {name!r}")
        if task is not None and task not in each.tasks:
            raise ConfigError(
                f"The format {name!r} is for {' and '.join(each.tasks)} results, not for {task} ones.",
                hint="The formats parquet and webdataset hold results of each task.",
            )
    return formats


def files_of(folder: Path) -> list[str]:
    """Return the names of the files that an earlier run with formats of shards wrote to a folder of this machine."""
    pattern = pattern_of(folder)
    folders = (folder, *(folder_of(folder, name) for name in plugins.table("shards")))
    names = (path.relative_to(folder).as_posix() for each in folders for path in each.glob("*"))
    return [name for name in names if pattern is not None and pattern.fullmatch(name)]


def pattern_of(folder: Path) -> re.Pattern[str] | None:
    """Return the pattern of the names of shards, from the head of the journal of a folder; None where it has none."""
    _, line = next(whole_lines(folder / RUN_MARK), (0, b"{}"))
    try:
        names = parse(line)["formats"]
    except (ValueError, KeyError, TypeError):
        return None
    patterns = [re.escape(FAILURES)]
    for name in plugins.table("shards"):
        if isinstance(names, list) and name in names:
            each: Any = plugins.get("shards", name)
            start = f"{folder_of(Path(), name).as_posix()}/{each.prefix}"
            patterns += (rf"{re.escape(start)}\d{{5,}}{re.escape(suffix)}" for suffix in each.suffixes)
    return re.compile("|".join(patterns)) if len(patterns) > 1 else None


class Shards:
    """Writer of the shards of a run; a context manager. Without formats it only appends to the journal.

    Args:
        journal: the journal of the run.
        formats: formats by name.
        size: images in each shard.
        origin: origin of the results; None where there are no formats.
        background: write full shards in a thread, while the caller goes on.
    """

    def __init__(
        self,
        journal: Journal,
        formats: Mapping[str, ShardFormat],
        size: int,
        origin: Provenance | None,
        *,
        background: bool = False,
    ):
        self.journal, self.formats, self.size, self.origin = journal, formats, size, origin
        self.place = journal.place
        self.background = background
        self.stack = ExitStack()
        self.pending: Future[None] | None = None
        self.removed = -1  # number of the shard that was removed last

    def __enter__(self) -> Shards:
        self.pool = self.stack.enter_context(thread_pool(int(self.background)))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Append the entry of an image to the journal, and write its shard if this was the last image of it.

        Raises:
            M2FError: a file cannot be written.
        """
        if not self.formats:
            self._append(entry)
            return
        name = entry["record"]["name"]
        old = self.journal.get(name) or {}
        number = self.journal.numbers.get(name, len(self.journal.numbers))
        if old.get("row") != entry.get("row"):
            self._remove(number // self.size)
        self._append(entry)
        if not old and (number + 1) % self.size == 0:
            self._start(number // self.size)

    def conclude(self) -> None:
        """Write the shards that are missing, also the last one, and the table of the images that failed.

        Raises:
            M2FError: a file cannot be written.
        """
        if not self.formats or self.origin is None:
            return
        self._wait()
        self.place.flush()
        for shard in range(max(1, -(-len(self.journal.numbers) // self.size))):
            self._write(shard)
        records = (entry["record"] for entry in self._entries(sorted(self.journal.failed)))
        rows = (
            {"id": each["name"], "uri": str(each.get("file", "")), "reason": str(each["error"])} for each in records
        )
        write_table(self.journal.folder / FAILURES, ERRORS, rows, self.origin.texts())

    def _append(self, entry: dict[str, Any]) -> None:
        self.journal.append(entry)
        self.place.appended()

    def _start(self, shard: int) -> None:
        self._wait()
        self.removed = -1
        self.place.flush()  # rows are nowhere before their entries are there
        if self.pool is None:
            self._write(shard)
        else:
            self.pending = self.pool.submit(self._write, shard)

    def _wait(self) -> None:
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def _remove(self, shard: int) -> None:
        if shard == self.removed:
            return
        self._wait()
        for name in self.formats:
            self.place.remove(self._names(name, shard))
        self.removed = shard

    def _write(self, shard: int) -> None:
        """Write what is missing of a shard."""
        assert self.origin is not None
        for name, each in self.formats.items():
            names = self._names(name, shard)
            if not all(map(self.place.has, names)):
                stem = each.stem(folder_of(self.journal.folder, name), shard)
                each.write(self._rows(shard), stem, self.origin)
                self.place.keep(names)

    def _names(self, name: str, shard: int) -> list[str]:
        return [path.as_posix() for path in self.formats[name].files(folder_of(Path(), name), shard)]

    def _rows(self, shard: int) -> Iterator[Row]:
        first = shard * self.size
        for entry in self._entries(range(first, min(first + self.size, len(self.journal.offsets)))):
            if "row" in entry:
                yield entry["row"]

    def _entries(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield entries of the journal, through a file of their own, because another thread may read it, too."""
        with self.journal.path.open("rb") as file:
            for number in numbers:
                file.seek(self.journal.offsets[number])
                try:
                    yield parse(file.readline())
                except ValueError as error:
                    raise DataError(f"{self.journal.path} is damaged.", hint="Use another --out.") from error

"""Folder of a store as the place of the results of a run.

Results are written to a folder of this machine, uploaded as soon as they are whole, and removed here. The journal goes
up in segments, `.predict/000001.jsonl`, …: together they are the journal. The files that a segment lists are in the
store before it, so that any machine can go on.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, DataError
from ..results.writers import folder_of
from ..runtime import caches
from ..runtime.files import is_part, writing_to
from ..runtime.locks import is_lock
from ..runtime.threads import in_order
from ..storage import files
from ..storage.uris import scheme_of
from . import shards
from .journal import PREDICTIONS, SHARED, files_of
from .results_folder import ResultsFolder
from .sources import RUN_MARK
from .stream import thread_pool

WRITTEN = ("s3", "gs")  # schemes
SEGMENT = re.compile(r"\.predict/(\d{6,})\.jsonl")
_MOST_WAITING, _LONGEST_WAIT = 64, 10.0  # images, and seconds, before a segment goes up
_REQUESTS = 16  # at a time


def check_remote(formats: Sequence[str], thumbnails: int) -> None:
    """Refuse what can be written to folders of this machine alone.

    Raises:
        ConfigError: a format packs the files of all images, or there are views for a page.
    """
    packed = next((name for name in formats if name in SHARED and SHARED[name].pack is not None), None)
    if packed is not None:
        raise ConfigError(
            f"The format {packed!r} packs a folder of this machine, and --out is in a store.",
            hint="Use coco-panoptic or coco-panoptic-shards.",
        )
    if thumbnails:
        raise ConfigError("--report writes a page to a folder of this machine, and --out is in a store.")


def claim(remote: RemoteFolder, formats: Sequence[str], spared: Sequence[Path | str] = ()) -> None:
    """Take a folder of a store for a run: as `check_folder` and `erase` do for one of this machine.

    Raises:
        ConfigError, DataError: see `RemoteFolder`.
    """
    remote.claim(patterns_of(formats))
    if remote.overwrite and remote.segments:
        remote.erase(results_of(remote.folder, remote.names), set(map(str, spared)))


def patterns_of(formats: Sequence[str]) -> list[str]:
    """Return patterns of the names that results of some formats have, relative to the output folder."""
    shared = (PREDICTIONS, shards.FAILURES, *(shared.file for shared in SHARED.values()))
    folders = (folder_of(Path(), name).as_posix() for name in formats)
    return [*map(re.escape, shared), *(f"{re.escape(folder)}/.*" for folder in folders)]


def results_of(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield the results that the journal of a folder lists, and those of `names` that a run writes beside them."""
    yield from files_of(folder / RUN_MARK)
    pattern = shards.pattern_of(folder)
    shared = (PREDICTIONS, *(shared.file for shared in SHARED.values()))
    yield from (name for name in names if name in shared or (pattern is not None and pattern.fullmatch(name)))


class RemoteFolder(ResultsFolder):
    """Folder of results in a store.

    Args:
        uri: the folder's URI.
        staging: folder of this machine for what is not uploaded yet; by default in the cache.
        skip_existing: an earlier run is gone on with.
        overwrite: the files of an earlier run are removed first.

    Raises:
        ConfigError: nothing is written to such a URI; the folder is not empty and neither option was given, or both.
        DataError: the store cannot be reached.
    """

    def __init__(self, uri: str, staging: Path | None = None, *, skip_existing: bool = False, overwrite: bool = False):
        shown = files.shown(uri).rstrip("/")
        if scheme_of(uri) not in WRITTEN:
            raise ConfigError(f"{shown} is no folder that results are written to.", hint="Use s3://, gs:// or a path.")
        if skip_existing and overwrite:
            raise ConfigError("--skip-existing and --overwrite exclude each other.")
        name = hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]
        super().__init__((staging or caches.staging_dir()) / name)
        self.uri, self.shown = uri.rstrip("/"), shown
        self.overwrite = overwrite
        start = len(self.uri) + 1
        self.names = {found[start:] for found in files.find(self.uri)}
        self.segments = sorted(int(found[1]) for found in map(SEGMENT.fullmatch, self.names) if found)
        self.sent = 0  # bytes of the journal that are in the store
        self.waiting, self.last = 0, time.monotonic()
        if self.names and not (skip_existing or overwrite):
            raise ConfigError(
                f"The output folder {shown} is not empty.", hint="Use --skip-existing to go on, or --overwrite."
            )

    def claim(self, patterns: Collection[str]) -> None:
        """Fetch the journal of the earlier run. Nothing else of the folder is on this machine afterwards.

        Args:
            patterns: patterns of the names of results.

        Raises:
            ConfigError: files of no earlier run stand where results go.
            DataError: a part of the journal is missing or damaged.
        """
        self.clear()
        if not self.segments:
            mine = re.compile("|".join(patterns))
            foreign = next((name for name in sorted(self.names) if mine.fullmatch(name)), None)
            if foreign is not None:
                raise ConfigError(
                    f"{self.shown}/{foreign} lies where results go, and is of no earlier prediction.",
                    hint="Choose another --out.",
                )
            return
        if self.segments != list(range(1, len(self.segments) + 1)) and not self.overwrite:
            gap = next(n for n, found in enumerate([*self.segments, 0], 1) if n != found)
            raise DataError(f"{self.shown}/{_segment(gap)} is missing, a part of the journal.", hint="Use --overwrite.")
        with writing_to(self.folder), thread_pool(_REQUESTS) as pool, (self.folder / RUN_MARK).open("wb") as journal:
            fetched: Iterator[tuple[int, bytes]] = in_order(pool, self._fetch, self.segments, 2 * _REQUESTS)
            for number, content in fetched:
                if not content.endswith(b"\n") and not self.overwrite:
                    raise DataError(f"{self.shown}/{_segment(number)} is damaged.", hint="Use --overwrite.")
                journal.write(content[: content.rfind(b"\n") + 1])
            self.sent = journal.tell()

    def _fetch(self, number: int) -> tuple[int, bytes]:
        return number, files.read(f"{self.uri}/{_segment(number)}")

    def erase(self, names: Iterable[str], spared: Collection[str] = ()) -> None:
        """Remove results of an earlier run, and its journal at last.

        Args:
            names: names of files that the journal lists. Others of the folder stay.
            spared: URIs of input images.

        Raises:
            ConfigError: the journal lists an input image. Nothing has been removed then.
        """
        own = [name for name in names if name in self.names]
        given = next((name for name in own if f"{self.shown}/{name}" in spared), None)
        if given is not None:
            raise ConfigError(
                f"The image {self.shown}/{given} is a result of an earlier run, which --overwrite would remove.",
                hint="Choose another --out.",
            )
        self.remove(own)
        for number in reversed(self.segments):  # the first at last: until then, it can be said whose files these are
            self.remove([_segment(number)])
        self.segments, self.sent = [], 0
        (self.folder / RUN_MARK).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return name in self.names

    def remove(self, names: Iterable[str]) -> None:
        present = [name for name in names if name in self.names]
        with thread_pool(_REQUESTS if len(present) > 1 else 0) as pool:
            for name in in_order(pool, self._removed, present, 2 * _REQUESTS):
                self.names.discard(name)

    def _removed(self, name: str) -> str:
        files.remove(f"{self.uri}/{name}")
        return name

    def keep(self, names: Iterable[str]) -> None:
        names = list(names)
        assert self.uri is not None
        upload(self.folder, self.uri, names)
        self.names.update(names)

    def appended(self) -> None:
        self.waiting += 1
        if self.waiting >= _MOST_WAITING or time.monotonic() - self.last >= _LONGEST_WAIT:
            self.flush()

    def flush(self) -> None:
        """Upload the lines of the journal that are not in the store yet, as a segment.

        Raises:
            DataError: the store does not take it, or another process has written this segment.
        """
        with (self.folder / RUN_MARK).open("rb") as journal:
            journal.seek(self.sent)
            content = journal.read()
        content = content[: content.rfind(b"\n") + 1]  # a full disk may have cut a line
        if content:
            number = len(self.segments) + 1
            name = f"{self.uri}/{_segment(number)}"
            if files.exists(name):
                raise DataError(
                    f"{self.shown}/{_segment(number)} exists already: another process writes there.",
                    hint="Let one process write to a folder at a time.",
                )
            files.write(name, content)
            self.segments.append(number)
            self.sent += len(content)
        self.waiting, self.last = 0, time.monotonic()

    def conclude(self) -> None:
        """Upload all files that are in the folder of this machine, and the rest of the journal before them."""
        self.flush()
        self.keep(path.relative_to(self.folder).as_posix() for path in self._own() if path.is_file())

    def clear(self) -> None:
        """Remove everything from the folder of this machine."""
        with writing_to(self.folder):
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif not is_lock(path):
                    path.unlink()

    def _own(self) -> list[Path]:
        return sorted(
            path for path in self.folder.rglob("*") if path.name != RUN_MARK and not is_lock(path) and not is_part(path)
        )


def upload(folder: Path, uri: str, names: Sequence[str]) -> None:
    """Upload files of a folder, and remove them here.

    Args:
        folder: the folder.
        uri: URI of the folder in a store.
        names: relative names of the files.

    Two processes of a cluster may do the same image: they write the same bytes to the same place. A file that is gone
    here was uploaded by the other one.

    Raises:
        DataError: the store does not take one, or it is neither here nor there.
    """
    for name in names:
        path = folder / name
        try:
            files.write(f"{uri}/{name}", path)
        except files.MissingObject:
            if not files.exists(f"{uri}/{name}"):
                raise
        with writing_to(path):
            path.unlink(missing_ok=True)


def _segment(number: int) -> str:
    return f".predict/{number:06d}.jsonl"

"""Writing of records as a data set: in parallel, in constant memory, and either complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import cv2

from ...data.formats.layout import IMAGES
from ...data.records import PackedImage, Record, check_size
from ...errors import ConfigError, DataError
from ...runtime.files import SUFFIXES, Distinct, refuse_special, safe_name, writing_to
from ...runtime.locks import clear_staged, staged
from ...runtime.pools import process_pool
from ...runtime.text import json_text
from ...runtime.threads import in_order, usable_cores
from .base import Lost, Place, Rows, Writer, save_png
from .retask import Recast

_CHUNK = 8  # images that a process gets at a time
_AHEAD = 4  # chunks that wait per process
_WORTH_PROCESSES = 500  # images; a smaller number is written before other processes have started


@dataclass(frozen=True)
class ConvertOutcome:
    """Outcome of one image.

    Attributes:
        name: name of the image.
        rows: rows for the shared JSON.
        lost: losses by kind.
        failure: message of a failure. None if the image was written.
    """

    name: str
    rows: Rows = field(default_factory=dict)
    lost: Lost = field(default_factory=Counter)
    failure: str | None = None


@dataclass(frozen=True)
class WriteImage:
    """Function that writes images with their annotations below `root`. It is sent to other processes."""

    root: Path
    writer: Writer
    recast: Recast
    link: bool

    def __call__(self, chunk: tuple[int, Sequence[tuple[Record, Place]]]) -> list[ConvertOutcome]:
        number, items = chunk
        outcomes = [self._write(record, place) for record, place in items]
        written = [place for (_, place), each in zip(items, outcomes, strict=True) if each.failure is None]
        if self.writer.images_per_file is not None and written:
            self.writer.bundle(self.root, number, written)
        return outcomes

    def _write(self, record: Record, place: Place) -> ConvertOutcome:
        target = self.root / self.writer.image(place)
        try:
            if os.path.lexists(target):  # the folder is new: the file system takes two names for one
                raise DataError(f"{record.name} would be written over an image whose name differs in case alone.")
            annotation = record.read_annotation()
            pixels_HW3 = record.read_image()  # also checks that the image is complete
            check_size(record.image or Path(record.name), pixels_HW3.shape[:2], annotation.size)
            annotation, lost = self.recast(annotation)
            rows, more = self.writer.annotate(self.root, place, annotation)
        except DataError as error:
            return ConvertOutcome(record.name, failure=str(error))
        target.parent.mkdir(parents=True, exist_ok=True)
        if _own_suffix(record) is None:
            save_png(target, pixels_HW3)
        elif isinstance(record.read_image, PackedImage):
            target.write_bytes(record.read_image.content())
        elif self.link:
            target.symlink_to(record.image.resolve())
        else:
            shutil.copyfile(record.image, target)
        return ConvertOutcome(record.name, rows, lost + more)


@dataclass(frozen=True)
class Written:
    """Result of one split.

    Attributes:
        split: name of the split.
        images: number of written images.
        failures: (image, reason) of each image that could not be used.
        lost: losses by kind.
    """

    split: str
    images: int
    failures: tuple[tuple[str, str], ...]
    lost: Lost


def write_splits(
    parts: Mapping[str, Sequence[Record]],
    destination: Path,
    writer: Writer,
    recast: Recast,
    *,
    link: bool = False,
    workers: int | None = 1,
    on_image: Callable[[ConvertOutcome], None] | None = None,
) -> list[Written]:
    """Write a data set. Under its name it is either complete or absent.

    Args:
        parts: split to records.
        link: True for symbolic links to the images instead of copies.
        workers: number of processes. 1 works in this process. None takes one per core if there are many images. A
            script that asks for more than 1 needs `if __name__ == "__main__"`, as for any process pool.
        on_image: called with the outcome for each image.

    Raises:
        ConfigError: the destination exists, or another process is writing it.
        DataError: not a single image could be used, or two would have the same name.
        M2FError: there is no space or no permission, or a process was killed.
    """
    distinct, work = Distinct("splits"), {}
    for split, records in parts.items():
        distinct.add(split)
        work[safe_name(split)] = _placed(records, safe_name(split), writer)
    if workers is None:
        workers = usable_cores() if sum(map(len, work.values())) >= _WORTH_PROCESSES else 1
    with new_folder(destination) as root, _pool(workers) as pool:
        write = WriteImage(root, writer, recast, link)
        written = [_write_split(split, items, write, pool, workers, on_image) for split, items in work.items()]
        if not any(each.images for each in written):
            raise DataError(f"Not one image can be used; the first: {written[0].failures[0][1]}")
        writer.finish(root, [each.split for each in written])
    return written


def _write_split(
    split: str,
    items: Sequence[tuple[Record, Place]],
    write: WriteImage,
    pool: Executor | None,
    workers: int,
    on_image: Callable[[ConvertOutcome], None] | None,
) -> Written:
    lost: Lost = Counter()
    images, failures = 0, []
    with _shared(write, split) as add:
        for outcome in _outcomes(items, write, pool, workers):
            if outcome.failure is None:
                images += 1
                add(outcome.rows)
                lost.update(outcome.lost)
            else:
                failures.append((outcome.name, outcome.failure))
            if on_image is not None:
                on_image(outcome)
    return Written(split, images, tuple(failures), +lost)


def _outcomes(
    items: Iterable[tuple[Record, Place]], write: WriteImage, pool: Executor | None, workers: int
) -> Iterator[ConvertOutcome]:
    """Write all images in order, with a limited number of chunks waiting at a time."""
    rest, size = iter(items), write.writer.images_per_file or (1 if pool is None else _CHUNK)
    chunks = enumerate(iter(lambda: list(islice(rest, size)), []))
    return chain.from_iterable(in_order(pool, write, chunks, _AHEAD * workers))


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers <= 1:
        yield None
        return
    with process_pool(workers, "writes images", _use_one_thread) as pool:
        yield pool


def _use_one_thread() -> None:
    cv2.setNumThreads(1)


# --- names ------------------------------------------------------------------------------------------------------------


def _placed(records: Sequence[Record], split: str, writer: Writer) -> list[tuple[Record, Place]]:
    ids = [record.image_id for record in records]
    if None in ids or len(set(ids)) < len(ids):
        ids = list(range(1, len(records) + 1))
    distinct = Distinct(f"images of {split}", (*SUFFIXES, *filter(None, map(_suffix, records))))
    placed = []
    for record, key in zip(records, ids, strict=True):
        place = Place(split, safe_name(record.name), _suffix(record), key)
        # A format may put folders before a name, as Cityscapes does, so its paths must differ, too.
        distinct.add(record.name, writer.image(replace(place, suffix="")))
        placed.append((record, place))
    return placed


def _suffix(record: Record) -> str:
    return _own_suffix(record) or ".png"


def _own_suffix(record: Record) -> str | None:
    """Return the suffix of an image's file; None for one that is saved as PNG, because readers would not find it."""
    if isinstance(record.read_image, PackedImage):
        suffix = record.read_image.suffix
    else:
        suffix = "" if record.image is None else record.image.suffix
    return suffix if suffix.lower() in IMAGES else None


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Yield a folder beside `destination` that is renamed to it in the end, or removed if anything fails."""
    refuse_existing(destination)
    with writing_to(destination), staged(destination, "A conversion") as part:
        yield part
        refuse_existing(destination)  # again, because another process may have written it meanwhile
        os.replace(part, destination)


def refuse_existing(destination: Path) -> None:
    """Refuse a destination that exists, unless it is an empty folder.

    Raises:
        ConfigError: the destination exists, or is a link.
    """
    refuse_special(destination)
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        clear_staged(destination)
        raise ConfigError(f"{destination} exists already.", hint="Choose another name: nothing is overwritten.")


@contextmanager
def _shared(write: WriteImage, split: str) -> Iterator[Callable[[Rows], None]]:
    """Yield the function `add(rows)` for the JSON that the images of a split share."""
    name = write.writer.shared(split)
    if name is None:
        yield lambda rows: None
        return
    path = write.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    spools = {key: path.with_name(f".{path.stem}.{key}") for key in ("images", "annotations")}
    files = {key: spool.open("w+", encoding="utf-8") for key, spool in spools.items()}
    counts: Counter[str] = Counter()

    def add(rows: Rows) -> None:
        for key, row in ((key, row) for key, listed in rows.items() for row in listed):
            counts[key] += 1
            numbered = {**row, "id": counts[key]} if row.get("id", 0) is None else row
            files[key].write((",\n" if counts[key] > 1 else "") + json_text(numbered))

    try:
        yield add
        _assemble(path, files, write.writer.head())
    finally:
        for key, spool in spools.items():
            files[key].close()
            spool.unlink()


def _assemble(path: Path, files: Mapping[str, IO[str]], head: Mapping[str, Any]) -> None:
    """Write one object of long lists without holding them in memory."""
    with path.open("w", encoding="utf-8") as target:
        target.write("{" + ",\n".join(f"{json.dumps(key)}: {json_text(value)}" for key, value in head.items()))
        for key, file in files.items():
            target.write(f",\n{json.dumps(key)}: [\n")
            file.seek(0)
            shutil.copyfileobj(file, target)
            target.write("\n]")
        target.write("}\n")

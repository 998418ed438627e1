"""The memory of a predict run: a journal with one line per image, and the json files that all its images share.

A line is appended when an image is finished, so that a run can stop at any time and go on later; the shared files
are assembled from it at the end, one line at a time. In memory there is only an index of names.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, DataError
from ..results import server_formats
from ..results import writers as output
from ..results.types import Result
from ..results.writers import Writer
from ..runtime.files import atomic, is_part, lies_in, writing_to
from ..runtime.jsonl import JsonLines, parse, whole_lines
from ..runtime.locks import is_lock
from ..runtime.text import json_text
from ..structures.categories import Categories
from .sources import RUN_MARK


@dataclass(frozen=True)
class Shared:
    """A format whose images share one json file.

    write: what each image still writes of its own.  entry: what it adds to the shared file, from the result, its
    name and its image's file name.  pack: what is made of the folder in the end, from it and the journal's head;
    `packed` is the pattern of its name.
    """

    file: str
    write: Writer
    entry: Callable[[Result, str, str], Any]
    pack: Callable[[Path, dict[str, Any]], Path] | None = None
    packed: str | None = None


SHARED = {
    "coco-panoptic": Shared("panoptic.json", output.write_panoptic_png, output.panoptic_entry),
    "coco-panoptic-zip": Shared(
        "panoptic.json",
        output.write_panoptic_png,
        output.panoptic_entry,
        pack=server_formats.pack_run,
        packed=server_formats.PACKED,
    ),
    "coco-instance": Shared("instances.json", lambda result, stem: [], output.instance_entry),
}
PREDICTIONS = "predictions.json"


class Journal(JsonLines):
    """The journal of a folder. Its first line, the head, says what made it; each other line is one image's entry:
    {"record": {"name", "file", …}, "shared": {format: what it adds to the shared file}}."""

    def __init__(self, folder: Path, head: dict[str, Any]):
        """Open or start the journal.

        Raises:
            ConfigError: the folder's journal has another head: another model, task, format or threshold.
            DataError: the file is no journal.
            M2FError: the folder cannot be written.
        """
        self.folder = folder
        self.head = head
        self.offsets: dict[str, int] = {}
        super().__init__(folder / RUN_MARK)
        try:
            if self.size:
                self._index()
            else:
                super().append(head)
            self.reader = self.path.open("rb")
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.close()

    def append(self, entry: dict[str, Any]) -> None:
        self.offsets[entry["record"]["name"]] = super().append(entry)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the newest entry of an image."""
        if name not in self.offsets:
            return None
        self.reader.seek(self.offsets[name])
        return json.loads(self.reader.readline())

    def entries(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        return (entry for entry in map(self.get, names) if entry is not None)

    def is_finished(self, name: str, file: str) -> bool:
        """Whether an image was done without error and all its files are still there."""
        entry = self.get(name)
        if entry is None or "error" in entry["record"] or entry["record"]["file"] != file:
            return False
        return all((self.folder / each).is_file() for each in entry["record"].get("files", []))

    def _index(self) -> None:
        try:
            for offset, line in whole_lines(self.path):
                tree = parse(line)
                if offset:
                    self.offsets[_checked(tree)["record"]["name"]] = offset
                else:
                    _check_head(self.folder, dict(tree), self.head)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "Use --overwrite or another --out."
            raise DataError(f"{self.path} is damaged.", hint=hint) from error


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a journal that may be anybody's.

    Raises:
        KeyError, TypeError: it is none.
    """
    record, shared = entry["record"], entry.get("shared", {})
    files = record.get("files", [])
    fits = isinstance(record["name"], str) and isinstance(files, list) and all(isinstance(n, str) for n in files)
    lists = {"images", "annotations"}
    for name, part in shared.items():
        panoptic = name.startswith("coco-panoptic")
        fits &= isinstance(part, dict) and lists <= part.keys() if panoptic else isinstance(part, list)
    if not fits or ("error" not in record and not isinstance(record["file"], str)):
        raise TypeError("no entry of a journal")
    return entry


def _check_head(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in new:
        if old.get(key) != new[key]:
            raise ConfigError(
                f"{folder} holds predictions with {key} {old.get(key)!r}, not {new[key]!r}.",
                hint="Choose another --out, or --overwrite to start again.",
            )


def check_folder(folder: Path, formats: Sequence[str] = (), *, skip_existing: bool, overwrite: bool) -> None:
    """Refuse to write over what is there, unless that was asked for and an earlier run has written it.

    Raises:
        ConfigError: the folder is a file, or holds something and neither option was given, or files of no earlier run
            where results of `formats` go.
    """
    if skip_existing and overwrite:
        raise ConfigError("--skip-existing and --overwrite exclude each other.")
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; --out takes a folder.")
        is_used = folder.is_dir() and any(not (is_lock(path) or is_part(path)) for path in folder.iterdir())
        foreign = _file_in_the_way(folder, formats) if is_used and not (folder / RUN_MARK).exists() else None
    if is_used and not (skip_existing or overwrite):
        raise ConfigError(
            f"The output folder {folder} is not empty.", hint="Use --skip-existing to go on, or --overwrite."
        )
    if foreign is not None:
        raise ConfigError(
            f"{foreign} lies where results go, and is of no earlier prediction.", hint="Choose another --out."
        )


def _file_in_the_way(folder: Path, formats: Sequence[str]) -> Path | None:
    """Return a file at a place of results: it may be somebody's annotation."""
    shared = (folder / name for name in (PREDICTIONS, *(shared.file for shared in SHARED.values())))
    inside = (path for name in formats for path in output.folder_of(folder, name).rglob("*"))
    return next((path for path in itertools.chain(shared, inside) if path.is_file() and not is_part(path)), None)


def erase(folder: Path, spared: Sequence[Path] = ()) -> None:
    """Remove what an earlier run wrote to the folder, by its journal, and nothing else.

    Args:
        spared: images that were given; the journal, which may be anybody's, must not list them.

    Raises:
        ConfigError: it does. Nothing has been removed then.
        M2FError: a file cannot be removed.
    """
    path = folder / RUN_MARK
    if not path.is_file():
        return
    given = {os.path.realpath(image) for image in spared}
    for name in _files_of(path) if given else ():
        if os.path.realpath(folder / name) in given:
            raise ConfigError(
                f"The image {folder / name} is a result of an earlier run, which --overwrite would remove.",
                hint="Choose another --out.",
            )
    for name in _files_of(path):
        with writing_to(folder / name):
            (folder / name).unlink(missing_ok=True)
    packed = [path for shared in SHARED.values() if shared.packed for path in folder.glob(shared.packed)]
    files = [folder / name for name in (PREDICTIONS, *(shared.file for shared in SHARED.values()), RUN_MARK)]
    for path in (*packed, *files):
        path.unlink(missing_ok=True)


def _files_of(path: Path) -> Iterator[str]:
    """The files that a journal lists, as far as they lie in its own folder, whatever it says and links lead to."""
    for _, line in whole_lines(path):
        try:
            files = parse(line)["record"]["files"]
        except (ValueError, KeyError, TypeError):  # the head, or an image that failed
            continue
        for name in files if isinstance(files, list) else ():
            if isinstance(name, str) and lies_in(path.parent, name) and not (path.parent / name).is_dir():
                yield name


# --- the shared files -------------------------------------------------------------------------------------------------


def assemble(journal: Journal, names: Sequence[str], formats: Iterable[str], categories: Categories) -> None:
    """Write predictions.json and the shared files of `formats`, images in the order of `names`. Images of the
    journal that are not named come first: they belong to earlier runs into the same folder."""
    named = set(names)
    order = [name for name in journal.offsets if name not in named] + list(names)
    records = (entry["record"] for entry in journal.entries(order))
    _write_lists(journal.folder / PREDICTIONS, journal.head, {"predictions": records})

    def shared(format_name: str, key: str | None = None) -> Iterator[Any]:
        for entry in journal.entries(order):
            if format_name in entry.get("shared", ()):
                yield entry["shared"][format_name] if key is None else entry["shared"][format_name][key]

    for name in formats:
        if name.startswith("coco-panoptic"):
            lists = {key: shared(name, key) for key in ("images", "annotations")}
            head = {"categories": output.coco_categories(categories)}
            _write_lists(journal.folder / SHARED[name].file, head, lists)
        elif name == "coco-instance":
            with atomic(journal.folder / SHARED[name].file) as part, part.open("w", encoding="utf-8") as file:
                _write_list(file, (record for records in shared(name) for record in records))
        if name in SHARED and SHARED[name].pack is not None:
            SHARED[name].pack(journal.folder, journal.head)


def _write_lists(path: Path, head: dict[str, Any], lists: dict[str, Iterable[Any]]) -> None:
    with atomic(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(json_text(head)[:-1])
        for key, items in lists.items():
            file.write(f', "{key}": ')
            _write_list(file, items)
        file.write("}\n")


def _write_list(file: IO[str], items: Iterable[Any]) -> None:
    separator = "[\n"
    for item in items:
        file.write(separator + json_text(item))
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n]")

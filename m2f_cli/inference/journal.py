"""Journal of a predict run, with one line per image, and the JSON files that all its images share.

A line is appended when an image is finished, so that a run can stop at any time and be resumed. The shared files are
assembled from the journal at the end, one line at a time. Only an index of names is kept in memory.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from typing_extensions import NotRequired, TypedDict

from ..errors import ConfigError, DataError
from ..results import server_formats
from ..results import writers as output
from ..results.rows import checked as checked_row
from ..results.views import NAME as VIEWS
from ..runtime.files import atomic, is_part, lies_in, writing_to
from ..runtime.jsonl import JsonLines, parse, whole_lines
from ..runtime.locks import is_lock
from ..runtime.text import json_text
from ..structures import Task
from ..structures.categories import Categories
from . import shards
from .results_folder import ResultsFolder
from .sources import RUN_MARK


@dataclass(frozen=True)
class Shared:
    """Format whose images share one JSON file.

    Attributes:
        file: name of the shared file.
        write: writes the files of one image, from the result and a path without suffix; returns them.
        entry: returns the entry of one image in the shared file, from the result, its name and the image's file name.
        pack: packs the folder at the end, from its path and the head of the journal; returns the packed file.
        packed: pattern of the name of that file.
    """

    file: str
    write: Callable[[Any, Path], list[Path]]  # each format takes its own kind of result
    entry: Callable[[Any, str, str], Any]
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
PAGE, PAGES = "report.html", ("report/index.html", "report/images-*.html")  # what `report.predictions` writes


class FoundSegment(TypedDict):
    """A segment, an object or a class of an image. Only segments and objects have a score."""

    label: Annotated[str, "Name of the class."]
    category_id: Annotated[int, "Id of the class in its data set."]
    area: Annotated[int, "Number of pixels."]
    score: Annotated[NotRequired[float], "Confidence, 0 to 1."]
    id: Annotated[NotRequired[int], "Panoptic: value of the pixels of the segment in the map, from 1 on."]
    isthing: Annotated[NotRequired[bool], "Panoptic: true for a countable object."]


class PredictedImage(TypedDict):
    """An image and what was found in it. One that failed has `name`, `file` and `error` alone."""

    name: Annotated[str, "Name of its results in the output folder, without a suffix."]
    file: Annotated[str, "The image."]
    width: Annotated[NotRequired[int], "Pixels."]
    height: Annotated[NotRequired[int], "Pixels."]
    segments: Annotated[NotRequired[list[FoundSegment]], "Panoptic: the segments."]
    instances: Annotated[NotRequired[list[FoundSegment]], "Instance: the objects, best first."]
    classes: Annotated[NotRequired[list[FoundSegment]], "Semantic: the classes that have pixels."]
    files: Annotated[NotRequired[list[str]], "Files that were written, from the output folder on."]
    times_ms: Annotated[NotRequired[dict[str, float]], "Milliseconds of each stage."]
    error: Annotated[NotRequired[str], "The reason why there is no result."]


class PredictionsDocument(TypedDict):
    """The file predictions.json of an output folder."""

    schema_version: Annotated[int, "Version of this layout."]
    model: Annotated[str, "The model as it was named."]
    task: Annotated[Task, "The task."]
    formats: Annotated[list[str], "Formats that were written."]
    thresholds: Annotated[dict[str, Any], "Thresholds that differ from the model's own."]
    shard_size: Annotated[NotRequired[int], "Formats of shards: images in each shard."]
    weights: Annotated[NotRequired[str | None], "Formats of shards: start of a hash over all weights."]
    configuration: Annotated[NotRequired[str | None], "Formats of shards: start of a hash over the configuration."]
    predictions: list[PredictedImage]


class Journal(JsonLines):
    """Journal of a folder.

    Its first line, the head, has the settings of the run. Each other line is the entry of one image:
    {"record": {"name", "file", …}, "shared": {format: entry of the shared file}, "row": …}.
    The row is there for formats of shards.

    Attributes:
        numbers: name → number of the image, from 0 on, in the order in which the images came.
        offsets: where the newest entry of each image begins.
        failed: numbers of the images that failed.
    """

    def __init__(self, folder: Path, head: dict[str, Any], place: ResultsFolder | None = None):
        """Open or start the journal.

        Args:
            folder: the folder of the journal.
            head: the settings of the run.
            place: the place of the files that entries list; by default the folder.

        Raises:
            ConfigError: the folder's journal has another model, task, format or threshold in its head.
            DataError: the file is no journal.
            M2FError: the folder cannot be written.
        """
        self.folder = folder
        self.place = place or ResultsFolder(folder)
        self.head = head
        self.numbers: dict[str, int] = {}
        self.offsets = array("q")
        self.failed: set[int] = set()
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

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.close()

    def append(self, entry: dict[str, Any]) -> int:
        offset = super().append(entry)
        self._register(entry["record"], offset)
        return offset

    def _register(self, record: dict[str, Any], offset: int) -> None:
        number = self.numbers.setdefault(record["name"], len(self.numbers))
        if number == len(self.offsets):
            self.offsets.append(offset)
        self.offsets[number] = offset
        (self.failed.add if "error" in record else self.failed.discard)(number)

    def has(self, line: bytes) -> bool:
        """Return True if a line of another journal names an image that has an entry here."""
        try:
            return parse(line)["name"] in self.numbers
        except (ValueError, KeyError, TypeError):
            return False

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the newest entry of an image; None where it has none."""
        if name not in self.numbers:
            return None
        self.reader.seek(self.offsets[self.numbers[name]])
        entry: dict[str, Any] = parse(self.reader.readline())
        return entry

    def entries(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        return (entry for entry in map(self.get, names) if entry is not None)

    def is_finished(self, name: str, file: str) -> bool:
        """Return True if an image was finished without error and all its result files still exist."""
        entry = self.get(name)
        if entry is None or "error" in entry["record"] or entry["record"]["file"] != file:
            return False
        return all(map(self.place.has, entry["record"].get("files", [])))

    def _index(self) -> None:
        try:
            for offset, line in whole_lines(self.path):
                tree = parse(line)
                if offset:
                    self._register(_checked(tree)["record"], offset)
                else:
                    _check_head(self.place.shown, dict(tree), self.head)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "Use --overwrite or another --out."
            raise DataError(f"{self.path} is damaged.", hint=hint) from error


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a journal of unknown origin if it is valid.

    Raises:
        KeyError: a part is missing.
        TypeError, ValueError: a part has the wrong type.
    """
    record, shared = entry["record"], entry.get("shared", {})
    files = record.get("files", [])
    fits = isinstance(record["name"], str) and isinstance(files, list) and all(isinstance(n, str) for n in files)
    lists = {"images", "annotations"}
    for name, part in shared.items():
        panoptic = name.startswith("coco-panoptic")
        fits &= isinstance(part, dict) and lists <= part.keys() if panoptic else isinstance(part, list)
    if "row" in entry:
        checked_row(entry["row"])
    if not fits or ("error" not in record and not isinstance(record["file"], str)):
        raise TypeError("no entry of a journal")
    return entry


def _check_head(folder: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in new:
        if old.get(key) != new[key]:
            raise ConfigError(
                f"{folder} holds predictions with {key} {old.get(key)!r}, not {new[key]!r}.",
                hint="Choose another --out, or --overwrite to start again.",
            )


def check_folder(
    folder: Path, formats: Sequence[str] = (), others: Sequence[str] = (), *, skip_existing: bool, overwrite: bool
) -> None:
    """Refuse to overwrite existing files, unless an option allows it and an earlier run has written them.

    Raises:
        ConfigError: the folder is a file; it is not empty and neither option was given; both were; or files of no
            earlier run stand where results of `formats` go, or the files that `others` names.
    """
    if skip_existing and overwrite:
        raise ConfigError("--skip-existing and --overwrite exclude each other.")
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; --out takes a folder.")
        is_used = folder.is_dir() and any(not (is_lock(path) or is_part(path)) for path in folder.iterdir())
        foreign = _file_in_the_way(folder, formats, others) if is_used and not (folder / RUN_MARK).exists() else None
    if is_used and not (skip_existing or overwrite):
        raise ConfigError(
            f"The output folder {folder} is not empty.", hint="Use --skip-existing to go on, or --overwrite."
        )
    if foreign is not None:
        raise ConfigError(
            f"{foreign} lies where results go, and is of no earlier prediction.", hint="Choose another --out."
        )


def _file_in_the_way(folder: Path, formats: Sequence[str], others: Sequence[str]) -> Path | None:
    """Return a file at a place of results: it may be somebody's annotation."""
    shared = (folder / name for name in (PREDICTIONS, *(shared.file for shared in SHARED.values()), *others))
    inside = (path for name in formats for path in output.folder_of(folder, name).rglob("*"))
    return next((path for path in itertools.chain(shared, inside) if path.is_file() and not is_part(path)), None)


def erase(folder: Path, spared: Sequence[Path] = ()) -> None:
    """Remove the files that the journal of an earlier run lists, and nothing else.

    Args:
        folder: the folder of results.
        spared: input images. The journal may be of unknown origin, so it must not list them.

    Raises:
        ConfigError: the journal lists an input image. Nothing has been removed then.
        M2FError: a file cannot be removed.
    """
    path = folder / RUN_MARK
    if not path.is_file():
        return
    given = {os.path.realpath(image) for image in spared}
    for name in files_of(path) if given else ():
        if os.path.realpath(folder / name) in given:
            raise ConfigError(
                f"The image {folder / name} is a result of an earlier run, which --overwrite would remove.",
                hint="Choose another --out.",
            )
    for name in files_of(path):
        with writing_to(folder / name):
            (folder / name).unlink(missing_ok=True)
    sharded = [folder / name for name in shards.files_of(folder) if lies_in(folder, name)]
    packed = [path for shared in SHARED.values() if shared.packed for path in folder.glob(shared.packed)]
    names = (PREDICTIONS, *(shared.file for shared in SHARED.values()), VIEWS, PAGE, RUN_MARK)
    pages = [
        page for pattern in PAGES for page in folder.glob(pattern) if lies_in(folder, str(page.relative_to(folder)))
    ]
    for path in (*sharded, *packed, *pages, *(folder / name for name in names)):
        path.unlink(missing_ok=True)


def files_of(path: Path) -> Iterator[str]:
    """Yield the files that a journal lists, if they lie in its own folder, also after links are resolved."""
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
    """Write predictions.json and the shared files of `formats`.

    Args:
        journal: the journal of the folder.
        names: names of images, in the order of the files. Other images of the journal are of earlier runs into the
            same folder and come first.
        formats: names of writers.
        categories: classes of the model.
    """
    named = set(names)
    order = [name for name in journal.numbers if name not in named] + list(names)
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
        pack = SHARED[name].pack if name in SHARED else None
        if pack is not None:
            pack(journal.folder, journal.head)


def _write_lists(path: Path, head: dict[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
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

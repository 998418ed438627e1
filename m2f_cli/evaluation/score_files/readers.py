"""Predictions of any tool as results: the kind of a file, folder or archive, and one reader for each kind.

A reader is matched with annotated images first, which checks everything that can be known without pixels. Then it reads
image by image. The files that are required and those that may be missing follow the official tool of each kind.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeAlias

import numpy as np

from ...data.formats.cityscapes import LABEL_IDS
from ...data.formats.label_maps import LabelFile
from ...data.formats.shapes import parse_shape
from ...data.formats.value_map import ValueMap, value_map
from ...data.records import DataSet, Record
from ...errors import DataError
from ...results.types import Instances, PanopticMap, Result, Segment, SemanticMap
from ...runtime import documents
from ...runtime.trees import Tree
from ...structures import Task, schemas
from ...structures.categories import Categories
from ...structures.rle import encode_mask, encode_shape
from ...structures.run_lengths import pair_counts
from .matching import by_name, known_ids
from .pngs import decode_ids, decode_mask, decode_values

Size: TypeAlias = tuple[int, int]
Read: TypeAlias = Callable[[Size], Result]


@dataclass(frozen=True)
class Matched:
    """Readers of the predictions of annotated images.

    Attributes:
        reads: for each annotated image a function of its (height, width) that returns its prediction.
        notes: remarks for people.
    """

    reads: Sequence[Read]
    notes: tuple[str, ...] = ()


class Predictions(Protocol):
    """Protocol of one kind of prediction files.

    Attributes:
        task: the task of their results.
        kind: a description in words.
    """

    task: Task
    kind: str

    def match(self, data: DataSet) -> Matched:
        """Match the predictions with annotated images.

        Raises:
            DataError: the predictions do not fit the annotated images or their categories.
        """


# --- COCO panoptic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PanopticFiles:
    """COCO panoptic JSON and its PNGs.

    The rules are those of panopticapi: each annotated image needs a prediction, and predictions of other images do not
    count.

    Attributes:
        annotations: the list "annotations" of the JSON.
        categories: the list "categories" of the JSON.
        pngs: the folder or archive of the PNGs.
        where: the path of the JSON, for messages.
    """

    annotations: list[Any]
    categories: list[Any]
    pngs: Tree
    where: str
    task: Task = "panoptic"

    @property
    def kind(self) -> str:
        return f"COCO panoptic: {self.where} with the PNGs in {self.pngs}"

    def match(self, data: DataSet) -> Matched:
        by_id: dict[int | str, dict[str, Any]] = {}
        ids = {record.image_id for record in data.records}
        for position, given in enumerate(self.annotations):
            entry = _read_panoptic(given, ids, f"{self.where}: annotation {position}")
            if by_id.setdefault(entry["image_id"], entry) is not entry:
                raise DataError(f"{self.where} has several predictions for the image_id {entry['image_id']!r}.")
        numbers = {category.id: label for label, category in enumerate(data.categories)}
        entries = [by_id.get(key) for key in known_ids(data.records, by_id)]
        self._refuse_missing(
            [record for record, entry in zip(data.records, entries, strict=True) if entry is None], data
        )
        reads = [
            _PanopticRead(self, entry, self._labels(entry, numbers), data.categories) for entry in entries if entry
        ]
        strays = len(by_id) - len({entry["image_id"] for entry in entries if entry})
        return Matched(reads, (*self._names(data.categories), *_left_out(strays)))

    def _labels(self, entry: dict[str, Any], numbers: dict[int, int]) -> dict[int, int]:
        """Return the class number of each segment's id."""
        where = f"{self.where}: image_id {entry['image_id']!r}"
        labels: dict[int, int] = {}
        for info in entry["segments_info"]:
            if info["id"] in labels:
                raise DataError(f"{where} lists the segment {info['id']} twice.")
            labels[info["id"]] = number_of(info["category_id"], numbers, where)
        return labels

    def _refuse_missing(self, missing: list[Record], data: DataSet) -> None:
        if not missing:
            return
        png = f"{PurePosixPath(missing[0].name).name}.png"
        there = f" (there is a {png}, but the json does not list it)" if self.pngs.has(png) else ""
        raise DataError(
            f"{self.where} has no prediction for {len(missing)} of {len(data)} annotated images, such as "
            f"{missing[0].name}{there}.",
            hint="Predict all images: an empty segments_info and a black PNG say that nothing was found.",
        )

    def _names(self, categories: Categories) -> Iterable[str]:
        """Yield a note where the predictions call a category by another name."""
        true = {category.id: category.name for category in categories}
        for row in self.categories:
            name, key = (row.get("name"), row.get("id")) if isinstance(row, dict) else (None, None)
            if name is not None and isinstance(key, int) and true.get(key, name) != name:
                yield f"the category {key} is {name!r} in {self.where} and {true[key]!r} in the annotations"
                return


@dataclass(frozen=True)
class _PanopticRead:
    files: PanopticFiles
    entry: dict[str, Any]
    labels: dict[int, int]
    categories: Categories

    def __call__(self, size: Size) -> PanopticMap:
        name = self.entry["file_name"]
        where = f"{self.files.pngs}/{name}"
        ids_HW = decode_ids(self.files.pngs.read(name), size, where)
        ids, _, areas = (values.tolist() for values in pair_counts(ids_HW, ids_HW))
        area = {key: count for key, count in zip(ids, areas, strict=True) if key}
        strange, absent = sorted(area.keys() - self.labels.keys()), sorted(self.labels.keys() - area.keys())
        if strange:
            raise DataError(f"{where} has pixels of the segment {strange[0]}, which {self.files.where} does not list.")
        if absent:
            raise DataError(f"{self.files.where} lists the segment {absent[0]}, of which {where} has no pixel.")
        segments = [
            Segment(info["id"], self.labels[info["id"]], info["score"], area[info["id"]])
            for info in self.entry["segments_info"]
        ]
        return PanopticMap(size, self.categories, ids_HW, segments)


def _read_panoptic(given: Any, ids: Container[int | str], where: str) -> dict[str, Any]:
    """Return an annotation that fits its schema, with the image_id as the annotated images have it."""
    hint = "Write the predictions again."
    annotation = schemas.read_as(schemas.PredictedPanoptic, given, where, hint=hint)
    of_image = f"{where} (image_id {annotation.image_id!r}): a segment"
    infos = [schemas.read_as(schemas.PredictedSegment, info, of_image, hint=hint) for info in annotation.segments_info]
    return {
        "image_id": schemas.same_key(annotation.image_id, ids),
        "file_name": annotation.file_name,
        "segments_info": [info.model_dump() for info in infos],
    }


# --- COCO instances ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InstanceFile:
    """COCO instance results, polygons or run lengths.

    The rules are those of pycocotools. An image without objects is an image where nothing was found. An image_id that
    the annotations do not have is an error.

    Attributes:
        records: the objects.
        where: the path of the file, for messages.
    """

    records: list[Any]
    where: str
    task: Task = "instance"

    @property
    def kind(self) -> str:
        return f"COCO instance results: {self.where}, {len(self.records)} objects"

    def match(self, data: DataSet) -> Matched:
        by_id: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        numbers = {category.id: label for label, category in enumerate(data.categories)}
        ids = {record.image_id for record in data.records}
        for position, given in enumerate(self.records):
            record = _read_object(given, numbers, f"{self.where}: the object {position}")
            by_id[schemas.same_key(record["image_id"], ids)].append(record)
        keys = known_ids(data.records, by_id)
        strange = list(by_id.keys() - set(keys))
        if strange:
            raise DataError(
                f"{self.where} has objects in {len(strange)} images that the annotations do not have, such as the "
                f"image_id {strange[0]!r}.",
                hint="Are the annotations those of another split?",
            )
        reads = [
            _InstanceRead(by_id.get(key, []), numbers, data.categories, f"{self.where}: image_id {key!r}")
            for key in keys
        ]
        empty = sum(key not in by_id for key in keys)
        notes = (f"{empty} of {len(keys)} annotated images have no objects in the predictions",) if empty else ()
        return Matched(reads, notes)


def _read_object(given: Any, numbers: dict[int, int], where: str) -> dict[str, Any]:
    """Return an object whose image_id, category_id and score are numbers; unchanged, where they already are."""
    is_plain = (
        type(given) is dict
        and type(given.get("image_id")) in (int, str)
        and type(given.get("category_id")) is int
        and type(given.get("score")) is float
        and math.isfinite(given["score"])
    )
    if not is_plain:
        checked = schemas.read_as(schemas.PredictionRecord, given, where, hint="Write the predictions again.")
        given = {**given, **checked.model_dump()}
    number_of(given["category_id"], numbers, where)
    return given


@dataclass(frozen=True)
class _InstanceRead:
    records: list[dict[str, Any]]
    numbers: dict[int, int]
    categories: Categories
    where: str

    def __call__(self, size: Size) -> Instances:
        labels = [self.numbers[record["category_id"]] for record in self.records]
        shapes = [parse_shape(record.get("segmentation"), size, self.where) for record in self.records]
        if not all(shapes):
            raise DataError(f"{self.where}: the polygons of an object have fewer than three points each.")
        rles = [encode_shape(shape, size) for shape in shapes]
        return ranked(size, self.categories, labels, [record["score"] for record in self.records], rles)


def ranked(size: Size, categories: Categories, labels: list[int], scores: list[float], rles: list[Any]) -> Instances:
    """Return the objects, best first; equal scores stay in their order."""
    order = np.argsort(-np.array(scores, dtype=np.float64), kind="stable").tolist()
    labels_N = np.array([labels[i] for i in order], dtype=np.int64)
    return Instances(size, categories, labels_N, np.array([scores[i] for i in order]), [rles[i] for i in order])


# --- label maps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelFiles:
    """PNGs of numbers, one for each image and named like it. Each annotated image needs one.

    Attributes:
        pngs: the folder or archive of the PNGs.
        own: True if the numbers are category ids, as the format label-png writes them; False if those of the annotation
            files.
    """

    pngs: Tree
    own: bool = False
    task: Task = "semantic"

    @property
    def kind(self) -> str:
        return f"label maps: the PNGs in {self.pngs}, " + (
            "with category ids" if self.own else "with the numbers of the annotation files"
        )

    def match(self, data: DataSet) -> Matched:
        names, strays = by_name(self.pngs.names(suffix=".png"), data, self.pngs)
        by_id = _values_by_id(data)
        reads = []
        for record, name in zip(data.records, names, strict=True):
            from_file = isinstance(record.read_annotation, LabelFile) and not self.own
            reads.append(
                _LabelRead(self.pngs, name, data.categories, record.read_annotation.values if from_file else by_id)
            )
        return Matched(reads, tuple(_left_out(strays)))


def _values_by_id(data: DataSet) -> ValueMap:
    """Return the values of pixels with category ids, and those of pixels without a class in the format label-png."""
    numbers = {category.id: label for label, category in enumerate(data.categories)}
    unset = set(LABEL_IDS) - numbers.keys() if data.format == "cityscapes" else set()
    return value_map(numbers, data.categories, {255 if max(numbers) < 255 else 65535, *unset})


@dataclass(frozen=True)
class _LabelRead:
    pngs: Tree
    name: str
    categories: Categories
    values: ValueMap

    def __call__(self, size: Size) -> SemanticMap:
        where = f"{self.pngs}/{self.name}"
        annotation = self.values.labels(decode_values(self.pngs.read(self.name), size, where), where)
        return SemanticMap(size, self.categories, annotation.labels_HW)


# --- Cityscapes instances ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CityscapesInstances:
    """Texts with lines "mask labelId score", one for each image. Each annotated image needs one."""

    files: Tree
    task: Task = "instance"

    @property
    def kind(self) -> str:
        return f"Cityscapes instances: the texts in {self.files} and the masks that they name"

    def match(self, data: DataSet) -> Matched:
        names, strays = by_name(self.files.names(suffix=".txt"), data, self.files)
        return Matched([_CityscapesRead(self.files, name, data.categories) for name in names], tuple(_left_out(strays)))


@dataclass(frozen=True)
class _CityscapesRead:
    files: Tree
    name: str
    categories: Categories

    def __call__(self, size: Size) -> Instances:
        things = {category.id: label for label, category in enumerate(self.categories) if category.isthing}
        folder, labels, scores, rles = PurePosixPath(self.name).parent, [], [], []
        lines = documents.decode(self.files.read(self.name), f"{self.files}/{self.name}").split("\n")
        for number, line in enumerate(filter(str.strip, lines), 1):
            png, label_id, score = parse_line(line, f"{self.files}/{self.name}, line {number}")
            if label_id in things:  # the official tool ignores the other labels
                path = (folder / png).as_posix()
                mask_HW = decode_mask(self.files.read(path), size, f"{self.files}/{path}")
                rles.append(encode_mask(mask_HW))
                labels.append(things[label_id])
                scores.append(score)
        return ranked(size, self.categories, labels, scores, rles)


def parse_line(line: str, where: str) -> tuple[str, int, float]:
    """Return the mask's path, the labelId and the score of a line.

    Raises:
        DataError: the line has another form, an id that Cityscapes does not have, or a score that is no number.
    """
    parts = line.split()
    try:
        png, label_id, score = parts[0], int(float(parts[1])), float(parts[2])
    except (IndexError, ValueError, OverflowError) as error:
        raise DataError(f'{where} should be "mask labelId score", not {line[:80]!r}.') from error
    if len(parts) != 3 or label_id not in LABEL_IDS:
        raise DataError(f'{where} should be "mask labelId score" with a labelId from 0 to 33, not {line[:80]!r}.')
    check_score(score, where)
    return png, label_id, score


# --- shared -----------------------------------------------------------------------------------------------------------


def number_of(category_id: Any, numbers: dict[int, int], where: str) -> int:
    """Return the class number of a category_id.

    Raises:
        DataError: no category of the annotations has the id.
    """
    if type(category_id) is not int or category_id not in numbers:
        raise DataError(
            f"{where} has the category_id {schemas.shown(category_id)}; the annotations have {len(numbers)} categories "
            f"with ids from {min(numbers)} to {max(numbers)}.",
            hint="Predictions have the ids of the annotations, not class numbers.",
        )
    return numbers[category_id]


def check_score(score: Any, where: str) -> None:
    """Refuse a score that is no finite number.

    Raises:
        DataError: the score is no finite number.
    """
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise DataError(f"{where} has the score {score!r}, which should be a finite number.")


def _left_out(count: int) -> list[str]:
    return [f"{count} predictions of images that the annotations do not have are left out"] if count else []

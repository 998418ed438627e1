"""COCO instances: annotations/instances_{split}.json (docs/methods/published-behaviour.md#8-1).

Objects are polygons or run lengths; some of them are crowds.
"""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...structures import schemas
from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.images import image_size
from ..records import DataSet, PassedOver, Record
from .base import Format, Parts, ReadOptions, choose_task
from .class_map import ClassMap, is_crowd, map_classes, parse_categories
from .coco import CocoFile, find_json, has_json, image_folders, read_coco
from .layout import as_found, image_folder, record_name
from .shapes import check_canvas, parse_shape, split_polygons

KIND = "instances"
NO_POLYGON = "objects without a polygon of three points or more"
_KEYS = ("id", "category_id", "segmentation", "iscrowd", "area")


@dataclass(frozen=True)
class ObjectsOfImage:
    """Reader of the objects of one image.

    Attributes:
        file: the JSON file, for messages.
        image: the image file.
        size: (height, width). None reads it from the image.
        classes: the classes.
        packed: pickle of the image's annotations. It is a single object per image to keep and to send to workers, which
            saves memory: COCO's train split would be hundred million numbers.
    """

    file: Path
    image: Path
    size: tuple[int, int] | None
    classes: ClassMap
    packed: bytes

    def __call__(self) -> InstanceAnnotation:
        """Read the objects.

        Raises:
            DataError: an annotation has no mask or an unknown category, or does not fit the image.
        """
        size = self.size or image_size(self.image)
        return annotation_of(size, pickle.loads(self.packed), self.classes, self.file.name, self.image.name)


def rows_of(annotations: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return (id, category id, segmentation, crowd, area) of each annotation, not validated yet."""
    return [tuple(row.get(key) for key in _KEYS) for row in annotations]


def annotation_of(
    size: tuple[int, int], rows: Iterable[tuple[Any, ...]], classes: ClassMap, file: str, image: str
) -> InstanceAnnotation:
    """Return the objects of an image, without those of dropped categories.

    Args:
        size: (height, width) of the image.
        rows: from `rows_of`.
        file: name of the JSON, for messages.
        image: name of the image, for messages.

    Raises:
        DataError: an annotation has no mask or an unknown category, or does not fit the image.
    """
    check_canvas(size, f"{file}: {image}")
    objects = (_object(row, size, classes, _where(file, row[0], image)) for row in rows)
    return InstanceAnnotation(size, [item for item in objects if item is not None])


def _object(row: tuple[Any, ...], size: tuple[int, int], classes: ClassMap, where: str) -> AnnotatedObject | None:
    _, category_id, segmentation, iscrowd, area = row
    is_plain = type(category_id) is int and type(iscrowd) is int and iscrowd in (0, 1)
    if not (is_plain and type(area) is float and math.isfinite(area)):
        category_id, iscrowd, area = _values(category_id, iscrowd, area, where)
    label = classes.number(category_id, where)
    if label is None:
        return None
    shape = parse_shape(segmentation, size, where)
    return AnnotatedObject(label, shape, bool(iscrowd), area) if shape else None  # see `_passed_over`


def _values(category_id: Any, iscrowd: Any, area: Any, where: str) -> tuple[Any, bool, float | None]:
    row = schemas.read_as(schemas.Object, {"category_id": 0, "iscrowd": iscrowd, "area": area}, where)
    with contextlib.suppress(ValueError):  # the lookup in the classes reports unknown ids
        category_id = schemas.whole_number(category_id)
    return category_id, row.iscrowd, row.area


def _where(file: str, key: Any, image: str) -> str:
    return f"{file}: annotation {'without id' if key is None else key} of {image}"


def read_instances(coco: CocoFile, candidates: list[Path], options: ReadOptions) -> Parts:
    """Return the classes, a record per image (also without annotation), notes, and what is passed over.

    Args:
        candidates: folders that may hold the images, best first. Empty if nobody will read the images.

    Raises:
        DataError: the categories are broken, the classes are those of another table, there are no images, or the task
            is not "instance".
    """
    choose_task(options.task, ("instance",), coco.path)
    classes = map_classes(parse_categories(coco.categories, coco.path, isthing=True), options.classes, coco.path)
    images = image_folder(coco.file_names(), candidates, coco.path) if candidates else coco.path.parent
    records = tuple(_record(coco, key, images, classes) for key in coco.images)
    passed = _passed_over(coco)
    return classes.categories, records, (*coco.notes, *classes.notes, *passed.notes), passed


def _record(coco: CocoFile, key: int | str, images: Path, classes: ClassMap) -> Record:
    rows, size = coco.annotations.get(key, []), coco.size(key)
    file_name = as_found(images, coco.images[key]["file_name"])
    packed = pickle.dumps(rows_of(rows), protocol=pickle.HIGHEST_PROTOCOL)
    labels = classes.labels(row.get("category_id") for row in rows if not is_crowd(row.get("iscrowd")))
    read_annotation = ObjectsOfImage(coco.path, images / file_name, size, classes, packed)
    sizes = size or (None, None)
    return Record(record_name(file_name), images / file_name, read_annotation, *sizes, labels, image_id=key)


def _passed_over(coco: CocoFile) -> PassedOver:
    """Return what `parse_shape` leaves out, without reading the images."""
    passed = PassedOver()
    for key, image in coco.images.items():
        for row in coco.annotations.get(key, ()):
            segmentation = row.get("segmentation")
            if type(segmentation) is list and not _is_plain(segmentation):
                _count(passed, segmentation, _where(coco.path.name, row.get("id"), Path(image["file_name"]).name))
    return passed


def _is_plain(segmentation: list[Any]) -> bool:
    """Return True if all polygons have three points or more, as nearly all have."""
    try:
        return min(map(len, segmentation)) >= 6
    except (TypeError, ValueError):
        return False


def _count(passed: PassedOver, segmentation: list[Any], where: str) -> None:
    try:
        polygons = split_polygons(segmentation, where)
    except DataError:
        return  # the image is refused when it is read
    empty = sum(len(points_P2) < 3 for points_P2 in polygons)
    if empty == len(polygons):
        passed.add(NO_POLYGON, f"{where}: {schemas.shown(segmentation)}")
    elif empty:
        passed.add("parts of objects that are fewer than three points", where, empty)


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    path, found_notes = find_json(folder, KIND, split)
    candidates = image_folders(folder, path, KIND, split)
    categories, records, notes, passed = read_instances(read_coco(path), candidates, options)
    return DataSet(folder.name, "coco-instance", split, "instance", categories, records, (*found_notes, *notes), passed)


FORMAT = Format(
    layout="annotations/instances_{train,val}*.json",
    finds=lambda folder: has_json(folder, KIND),
    open=open_split,
    generic=True,
)

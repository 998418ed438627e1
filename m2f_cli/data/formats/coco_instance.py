"""COCO instances: annotations/instances_{split}.json with polygons or run lengths, crowds among them (facts 8.1)."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...types import Categories, InstanceTruth, TrueObject
from ..picture import picture_size
from ..records import DataSet, Record
from .base import Format, Options, choose_task
from .class_map import ClassMap, map_classes, parse_categories
from .coco import CocoFile, find_json, has_json, picture_folders, read_coco
from .layout import picture_folder, record_name
from .shapes import parse_shape

KIND = "instances"
_KEYS = ("id", "category_id", "segmentation", "iscrowd", "area")


@dataclass(frozen=True)
class ObjectsOfPicture:
    """Reads the objects of one picture out of `packed`, a pickle of its annotations: one object per picture to keep
    and to send to workers, where COCO's train split would be hundred million numbers."""

    file: Path
    image: Path
    size: tuple[int, int] | None
    classes: ClassMap
    packed: bytes

    def __call__(self) -> InstanceTruth:
        """
        Raises:
            DataError: an annotation without mask, with an unknown category, or that does not fit the picture.
        """
        size = self.size or picture_size(self.image)
        found = (self._object(row, size) for row in pickle.loads(self.packed))
        return InstanceTruth(size, [item for item in found if item is not None])

    def _object(self, row: tuple[Any, ...], size: tuple[int, int]) -> TrueObject | None:
        key, category_id, segmentation, iscrowd, area = row
        where = f"{self.file.name}: annotation {key} of {self.image.name}"
        label = self.classes.number(category_id, where)
        if label is None:
            return None
        shape = parse_shape(segmentation, size, where)
        # Polygons of one or two points cover nothing: an object of nothing else is none.
        return TrueObject(label, shape, bool(iscrowd), None if area is None else float(area)) if shape else None


def read_instances(
    coco: CocoFile, candidates: list[Path], options: Options
) -> tuple[Categories, tuple[Record, ...], tuple[str, ...]]:
    """The classes, a record per picture (also of those without annotation), and notes.

    Args:
        candidates: folders in which the pictures may be, best first; none where nobody will read them.

    Raises:
        DataError: broken categories, classes of another table, no pictures, or a task that is not "instance".
    """
    choose_task(options.task, ("instance",), coco.path)
    classes = map_classes(parse_categories(coco.categories, coco.path, isthing=True), options.classes, coco.path)
    pictures = picture_folder(coco.file_names(), candidates, coco.path) if candidates else coco.path.parent
    records = tuple(_record(coco, key, pictures, classes) for key in coco.images)
    return classes.categories, records, (*coco.notes, *classes.notes)


def _record(coco: CocoFile, key: int | str, pictures: Path, classes: ClassMap) -> Record:
    rows, size, file_name = coco.annotations.get(key, []), coco.size(key), coco.images[key]["file_name"]
    packed = pickle.dumps([tuple(row.get(key) for key in _KEYS) for row in rows], protocol=pickle.HIGHEST_PROTOCOL)
    labels = classes.labels(row.get("category_id") for row in rows if not row.get("iscrowd"))
    read_truth = ObjectsOfPicture(coco.path, pictures / file_name, size, classes, packed)
    sizes = size or (None, None)
    return Record(record_name(file_name), pictures / file_name, read_truth, *sizes, labels, image_id=key)


def open_split(folder: Path, split: str, options: Options) -> DataSet:
    path, found_notes = find_json(folder, KIND, split)
    candidates = picture_folders(folder, path, KIND, split)
    categories, records, notes = read_instances(read_coco(path), candidates, options)
    return DataSet(folder.name, "coco-instance", split, "instance", categories, records, (*found_notes, *notes))


FORMAT = Format(
    layout="annotations/instances_{train,val}*.json",
    finds=lambda folder: has_json(folder, KIND),
    open=open_split,
    generic=True,
)

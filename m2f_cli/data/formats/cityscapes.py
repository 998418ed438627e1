"""Cityscapes: leftImg8bit/{split}/{city}/ and gtFine/{split}/{city}/ (docs/methods/published-behaviour.md#8-4).

Its classes are shipped tables. Other data in this layout needs a classes.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...structures import Task
from ...structures.annotations import AnnotatedSegment, PanopticAnnotation, ReadAs
from ...structures.categories import Categories, load_categories
from ...structures.images import image_size
from ...structures.run_lengths import renamed, values_in
from ..records import DataSet, Record, check_size
from .base import Format, ReadOptions, choose_task
from .class_map import ClassMap, map_classes
from .files import read_values
from .label_maps import Folders, label_records
from .layout import find_split, images_below
from .value_map import ValueMap, value_map

OBJECTS = 1000  # an instance id is labelId * 1000 + n for one object, the bare labelId for stuff and for groups
_IMAGE, _LABELS, _INSTANCES = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_instanceIds"
LABEL_IDS = range(34)
CLASSES = "classes.yaml"
POLYGONS = "objects are those of the instanceIds images; published training takes them from the polygons"


@dataclass(frozen=True)
class InstanceIds:
    """Reader of the segments of one image, from its instanceIds PNG.

    The result is that of the official panoptic JSON and PNG, which need not be created. The ids of segments are the
    instance ids. Groups of things are crowds. Pixels that are not evaluated are void.
    """

    png: Path
    image: Path
    classes: ClassMap

    def __call__(self) -> PanopticAnnotation:
        """Read the segments.

        Raises:
            DataError: the image of ids is missing, unreadable, or differs in size.
        """
        values_HW = read_values(self.png)
        check_size(self.image, image_size(self.image), values_HW.shape, self.png)
        present = values_in(values_HW).tolist()
        numbers = {value: self.classes.numbers.get(value if value < OBJECTS else value // OBJECTS) for value in present}
        kept = [value for value in present if numbers[value] is not None]
        segments = [AnnotatedSegment(value, numbers[value], self._is_group(value, numbers[value])) for value in kept]
        return PanopticAnnotation(
            renamed(values_HW, dict(zip(kept, kept, strict=True)), 0, np.int32), segments, source=self.png
        )

    def _is_group(self, value: int, label: int) -> bool:
        return value < OBJECTS and self.classes.categories[label].isthing


def label_ids(classes: ClassMap) -> ValueMap:
    """Return the meaning of the pixel values of labelIds images. Values without a class are ignored."""
    return value_map(classes.numbers, classes.categories, set(LABEL_IDS) - classes.numbers.keys())


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    task = choose_task(options.task, ("panoptic", "instance", "semantic"), folder)
    folders, _, notes = find_split(folder, split, lambda name: _folders_at(folder, name))
    classes = map_classes(_own_classes(folder, task), options.classes, folder)
    if task == "semantic":
        records, more = label_records(folders, label_ids(classes), image_end=_IMAGE, mask_end=_LABELS)
    else:
        records, more = tuple(_record(path, folders, classes, task) for path in images_below(folders.images)), ()
    notes = (*notes, *more, *classes.notes, *((POLYGONS,) if task == "instance" else ()))
    return DataSet(folder.name, "cityscapes", split, task, classes.categories, records, notes)


def _record(image: Path, folders: Folders, classes: ClassMap, task: Task) -> Record:
    name = image.relative_to(folders.images).with_suffix("").as_posix().removesuffix(_IMAGE)
    read = InstanceIds(folders.masks / f"{name}{_INSTANCES}.png", image, classes)
    return Record(name, image, read if task == "panoptic" else ReadAs(read, task, classes.categories))


def _own_classes(folder: Path, task: Task) -> Categories:
    own = folder / CLASSES
    if not own.is_file():
        return load_categories("cityscapes-instance" if task == "instance" else "cityscapes")
    return tuple(category for category in load_categories(own) if category.isthing or task != "instance")


def _folders_at(folder: Path, name: str) -> Folders | None:
    folders = Folders(folder / "leftImg8bit" / name, folder / "gtFine" / name)
    return folders if folders.images.is_dir() and folders.masks.is_dir() else None


FORMAT = Format(
    layout="leftImg8bit/{train,val}/CITY and gtFine/{train,val}/CITY",
    finds=lambda folder: (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir(),
    open=open_split,
)

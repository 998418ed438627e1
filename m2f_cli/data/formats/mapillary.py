"""Mapillary Vistas v1.2: {training,validation}/ with images, labels and panoptic.

See docs/methods/published-behaviour.md#8-5.
"""

from __future__ import annotations

from pathlib import Path

from ...structures.categories import load_class_table
from ..records import DataSet, PassedOver
from .base import Format, ReadOptions, choose_task
from .class_map import map_classes
from .coco import read_coco
from .coco_panoptic import png_folder, read_panoptic
from .label_maps import Folders, label_records
from .layout import find_split, folder_at
from .value_map import value_map

TABLE = "mapillary-vistas"


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    folders, _, notes = find_split(folder, split, lambda name: _folders_at(folder, name))
    json_path = folders.masks.parent / "panoptic" / "panoptic_2018.json"
    rich = ("panoptic", "instance") if json_path.is_file() else ()
    task = choose_task(options.task, (*rich, "semantic"), folder)
    if rich and task != "semantic":
        coco, pngs = read_coco(json_path), png_folder(json_path)
        categories, records, more, passed = read_panoptic(coco, pngs, [folders.images], options, task)
    else:
        passed = PassedOver()
        table = load_class_table(TABLE)
        classes = map_classes(table.categories, options.classes, folder)
        meanings = {key - 1: number for key, number in classes.numbers.items()}
        ignored = {table.ignore_index, *(key - 1 for key in classes.dropped)}
        records, more = label_records(folders, value_map(meanings, classes.categories, ignored))
        categories, more = classes.categories, (*more, *classes.notes)
    return DataSet(folder.name, "mapillary", split, task, categories, records, (*notes, *more), passed)


def _folders_at(folder: Path, name: str) -> Folders | None:
    """Return the folders of a split. Releases since v2.0 keep the old labels in a folder v1.2 of each split."""
    images, masks = folder / name / "images", folder_at(folder / name / "v1.2" / "labels", folder / name / "labels")
    return Folders(images, masks) if images.is_dir() and masks is not None else None


def _finds(folder: Path) -> bool:
    marks = ("{}/v1.2/labels", "{}/panoptic/panoptic_2018.json", "config_v1.2.json")
    return any((folder / mark.format(name)).exists() for mark in marks for name in ("training", "validation"))


FORMAT = Format(
    layout="{training,validation}/images and {training,validation}/labels or v1.2/labels, of Mapillary Vistas",
    finds=_finds,
    open=open_split,
)

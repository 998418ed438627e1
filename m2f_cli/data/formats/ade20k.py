"""ADE20K SceneParse150, the folder ADEChallengeData2016 (docs/methods/published-behaviour.md#8-2).

Its classes are shipped tables.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ...structures import Task
from ...structures.categories import load_categories
from ..records import DataSet, PassedOver
from .base import Format, ReadOptions, choose_task
from .class_map import map_classes
from .coco import read_coco
from .coco_instance import read_instances
from .coco_panoptic import png_folder, read_panoptic
from .label_maps import Folders, label_records
from .layout import find_split
from .value_map import value_map

_SHORT = {"training": "train", "validation": "val"}
_UNLABELLED = 0  # a mask's value is the id + 1


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    folders, name, notes = find_split(folder, split, lambda name: _folders_at(folder, name))
    jsons = {task: folder / f"ade20k_{task}_{_SHORT.get(name, name)}.json" for task in ("panoptic", "instance")}
    task = _choose(folder, jsons, options)
    if task == "instance":
        coco = read_coco(jsons["instance"])
        options = ReadOptions("instance", options.classes or "ade20k-instance")
        categories, records, more, passed = read_instances(coco, [folders.images], options)
    elif task == "panoptic":
        coco, pngs = read_coco(jsons["panoptic"]), png_folder(jsons["panoptic"])
        options = ReadOptions("panoptic", options.classes or "ade20k")
        categories, records, more, passed = read_panoptic(coco, pngs, [folders.images], options, task)
    else:
        passed = PassedOver()
        classes = map_classes(load_categories("ade20k"), options.classes, folder)
        meanings = {key + 1: number for key, number in classes.numbers.items()}
        values = value_map(meanings, classes.categories, {_UNLABELLED, *(key + 1 for key in classes.dropped)})
        categories, (records, more) = classes.categories, label_records(folders, values)
        more = (*more, *classes.notes)
    return DataSet(folder.name, "ade20k", split, task, categories, records, (*notes, *more), passed)


def _choose(folder: Path, jsons: dict[Task, Path], options: ReadOptions) -> Task:
    prepared = [task for task, path in jsons.items() if path.is_file()]
    if options.task in jsons and options.task not in prepared:
        raise DataError(
            f"{jsons[options.task]} is missing, which the task {options.task!r} needs.",
            hint=f"Make it from annotations_instance: m2f data prepare ade20k --root {folder}",
        )
    richest = [task for task in prepared if task == "panoptic"]
    return choose_task(options.task, (*richest, "semantic", "instance"), folder)


def _folders_at(folder: Path, name: str) -> Folders | None:
    folders = Folders(folder / "images" / name, folder / "annotations" / name)
    return folders if folders.images.is_dir() and folders.masks.is_dir() else None


def _finds(folder: Path) -> bool:
    named = (folder / "objectInfo150.txt").is_file() or any((folder / "images").glob("*/ADE_*_*.jpg"))
    return named and (folder / "annotations").is_dir()


FORMAT = Format(
    layout="ADEChallengeData2016 with images/{training,validation} and annotations/{training,validation}",
    finds=_finds,
    open=open_split,
)

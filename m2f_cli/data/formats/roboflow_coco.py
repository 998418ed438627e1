"""COCO as Roboflow exports it: train, valid and test, each with its pictures and _annotations.coco.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..records import DataSet
from .base import Format, Options
from .coco import CocoFile, read_coco
from .coco_instance import read_instances
from .layout import NAMES, find_split

FILE = "_annotations.coco.json"


def open_split(folder: Path, split: str, options: Options) -> DataSet:
    path, _, found_notes = find_split(folder, split, lambda name: _json_at(folder, name))
    coco, own_notes = without_project(read_coco(path))
    categories, records, notes = read_instances(coco, [path.parent], options)
    notes = (*found_notes, *own_notes, *notes)
    return DataSet(folder.name, "roboflow-coco", split, "instance", categories, records, notes)


def without_project(coco: CocoFile) -> tuple[CocoFile, tuple[str, ...]]:
    """Leave out the category 0 that stands for the project: others name it as their supercategory."""
    project = next((row for row in coco.categories if _field(row, "id") == 0), None)
    others = [row for row in coco.categories if row is not project]
    name = _field(project, "name")
    if not any(_field(row, "supercategory") == name for row in others):
        return coco, ()
    note = f"the category 0, {name!r}, stands for the project and is no class"
    return dataclasses.replace(coco, categories=others), (note,)


def _field(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None


def _json_at(folder: Path, name: str) -> Path | None:
    path = folder / name / FILE
    return path if path.is_file() else None


FORMAT = Format(
    layout="{train,valid,test}/_annotations.coco.json",
    finds=lambda folder: any(_json_at(folder, name) for name in NAMES),
    open=open_split,
)

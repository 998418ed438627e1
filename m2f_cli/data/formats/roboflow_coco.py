"""COCO as exported by Roboflow: train, valid and test, each with its images and _annotations.coco.json."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.files import read_file
from ..records import DataSet
from .base import Format, ReadOptions
from .coco import CocoFile, read_coco
from .coco_instance import read_instances
from .layout import NAMES, find_split, subfolders

FILE = "_annotations.coco.json"
_ZERO = re.compile(rb'"category_id"\s*:\s*"?0(\.0*)?"?\s*[,}]')


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    others = [name for name in subfolders(folder) if _json_at(folder, name)]
    path, _, found_notes = find_split(folder, split, lambda name: _json_at(folder, name), others)
    coco, own_notes = without_project(read_coco(path), [_json_at(folder, name) for name in others])
    categories, records, notes, passed = read_instances(coco, [path.parent], options)
    notes = (*found_notes, *own_notes, *notes)
    return DataSet(folder.name, "roboflow-coco", split, "instance", categories, records, notes, passed)


def without_project(coco: CocoFile, siblings: Sequence[Path] = ()) -> tuple[CocoFile, tuple[str, ...]]:
    """Leave out the category 0 that stands for the project, which other categories name as their supercategory.

    Args:
        siblings: the JSON files of all splits. A category that one of them annotates is a class in all of them.
    """
    project = next((row for row in coco.categories if _field(row, "id") in (0, "0")), None)
    others = [row for row in coco.categories if row is not project]
    name = _field(project, "name")
    if not any(_field(row, "supercategory") == name for row in others):
        return coco, ()
    own = (row.get("category_id") for rows in coco.annotations.values() for row in rows)
    if any(key in (0, "0", "0.0") for key in own) or any(map(_uses_zero, siblings)):
        return coco, (f"the category 0, {name!r}, is the parent of others, and a class: it has annotations of its own",)
    note = f"the category 0, {name!r}, stands for the project and is no class"
    return dataclasses.replace(coco, categories=others), (note,)


def _uses_zero(path: Path) -> bool:
    """Return True if a JSON has an annotation of the category 0.

    The text is searched, because parsing it would take much longer.
    """
    try:
        return _ZERO.search(read_file(path).replace(b"\0", b"")) is not None
    except OSError:
        return False  # opening that split reports the error


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

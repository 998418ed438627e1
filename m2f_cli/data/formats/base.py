"""Interface of a format: recognition of its folder, and opening of one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import DataError
from ...structures import Task
from ...structures.categories import Categories
from ..records import DataSet, PassedOver, Record

# Content of a JSON: the classes, a record per image, notes, and annotations that are passed over.
Parts: TypeAlias = tuple[Categories, tuple[Record, ...], tuple[str, ...], PassedOver]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a data set, as in `open_dataset.open_data`. None stands for an option that was not given.

    Attributes:
        task: task of the annotations.
        classes: shipped name or YAML file of a class table.
        ignore_index: pixel value that does not count.
        label_map: pixel value to class name or number, or to None for a value that does not count.
    """

    task: Task | None = None
    classes: str | Path | None = None
    ignore_index: int | None = None
    label_map: Mapping[int, str | int | None] | None = None


@dataclass(frozen=True)
class Format:
    """Reader of data sets, one line of the group "formats" in plugins.py.

    Attributes:
        layout: short description of the folder's content, for error messages.
        finds: returns True if a folder looks like this format. It must be quick.
        open: turns (folder, split, options) into a DataSet.
        generic: True if the layout is so plain that any other format that also fits takes precedence.
        raw_values: True if the masks hold numbers whose meaning `ignore_index` and `label_map` may give.
        in_stores: True if `finds` and `open` also take the URI of a folder in an object store, as text.
    """

    layout: str
    finds: Callable[[Any], bool]
    open: Callable[[Any, str, ReadOptions], DataSet]
    generic: bool = False
    raw_values: bool = False
    in_stores: bool = False


class NoTask(DataError):
    """Error of a data set without annotations for a task.

    Attributes:
        supported: the tasks that it has annotations for, the richest first.
    """

    supported: tuple[Task, ...] = ()


def choose_task(asked: Task | None, supported: Sequence[Task], where: Path | str) -> Task:
    """Return the requested task, or the first (richest) of `supported` if none was requested.

    Raises:
        NoTask: the data has no annotation for the task.
    """
    if asked is None or asked in supported:
        return asked or supported[0]
    error = NoTask(
        f"{where} has no annotations for the task {asked!r}, only for: {', '.join(supported)}.",
        hint=f"Use the task {supported[0]!r}, or another data set.",
    )
    error.supported = tuple(supported)
    raise error

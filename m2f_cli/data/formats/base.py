"""What a format is: how its folder is recognised, and how one split of it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ...errors import DataError
from ...structures import Task
from ...structures.categories import Categories
from ..records import DataSet, PassedOver, Record

# What a json gives: the classes, a record per image, notes, and annotations that are passed over.
Parts: TypeAlias = tuple[Categories, tuple[Record, ...], tuple[str, ...], PassedOver]


@dataclass(frozen=True)
class ReadOptions:
    """What a person may say about a data set, as in `detect.open_data`; None where nothing was said."""

    task: Task | None = None
    classes: str | Path | None = None
    ignore_index: int | None = None
    label_map: Mapping[int, str | int | None] | None = None


@dataclass(frozen=True)
class Format:
    """A reader of data sets, one line of the group "formats" in plugins.py.

    layout: what lies in such a folder, in a few words, for error messages.
    finds: whether a folder looks like it; must be quick.
    open: (folder, split, options) to a DataSet.
    generic: its layout is so plain that any other format that is found goes before it.
    raw_values: masks hold numbers whose meaning `ignore_index` and `label_map` may say.
    """

    layout: str
    finds: Callable[[Path], bool]
    open: Callable[[Path, str, ReadOptions], DataSet]
    generic: bool = False
    raw_values: bool = False


class NoTask(DataError):
    """A data set has no annotations for that task, but for those in `supported`, the richest first."""

    supported: tuple[Task, ...] = ()


def choose_task(asked: Task | None, supported: Sequence[Task], where: Path) -> Task:
    """The task that was asked for, or the first (richest) of `supported`.

    Raises:
        NoTask: this data has no annotation for the task.
    """
    if asked is None or asked in supported:
        return asked or supported[0]
    error = NoTask(
        f"{where} has no annotations for the task {asked!r}, only for: {', '.join(supported)}.",
        hint=f"Use the task {supported[0]!r}, or another data set.",
    )
    error.supported = tuple(supported)
    raise error

"""Source of a conversion: all splits of a folder, opened for the wanted task if the data supports it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.formats.base import NoTask
from ...data.formats.layout import NoSplit, in_all_cases, spellings
from ...data.open_dataset import detect, open_data
from ...data.records import DataSet
from ...errors import DataError
from ...structures import Task
from ...structures.categories import Categories

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ConvertSource:
    """Opened source of a conversion.

    Attributes:
        folder: the folder of the data set.
        splits: one data set per split, all of the same classes.
        richest: the richest task that the data supports.
        dropped: classes that annotations of the current task do not have (stuff, for instances).
    """

    folder: Path | str
    splits: tuple[DataSet, ...]
    richest: Task
    dropped: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        return self.splits[0].format

    @property
    def task(self) -> Task:
        return self.splits[0].task

    @property
    def categories(self) -> Categories:
        return self.splits[0].categories


def open_source(
    folder: Path | str, task: Task | None, splits: Sequence[str] = (), *, also: Sequence[str] = (), **options: Any
) -> ConvertSource:
    """Open the splits of a folder.

    Args:
        task: the wanted task. If it is None or the data has no annotations for it, the richest task is opened.
        splits: splits to open. By default train, val and test as far as they exist.
        also: further splits that are opened if they exist.
        options: as in `open_dataset.open_data`.

    Raises:
        DataError: a split is broken or missing, there is none at all, or the splits differ in classes or tasks.
    """
    options = {**options, "format": options.get("format") or detect(folder)}
    opened = _open_all(folder, splits or tuple(dict.fromkeys((*SPLITS, *also))), options, must=bool(splits))
    richest, own = opened[0].task, opened[0].categories
    if task is not None and any(data.task != task for data in opened):
        with contextlib.suppress(NoTask):  # the richest annotations are converted then
            opened = _open_all(folder, [data.split for data in opened], {**options, "task": task}, must=True)
    _refuse_other_kinds(folder, opened)
    names = {category.name for category in opened[0].categories}
    dropped = tuple(category.name for category in own if category.name not in names)
    return ConvertSource(folder, tuple(map(_without_split, opened)), richest, dropped)


def _open_all(folder: Path | str, splits: Sequence[str], options: Mapping[str, Any], *, must: bool) -> list[DataSet]:
    opened: dict[str, DataSet] = {}
    missing: NoSplit | None = None
    for split in reversed(splits):  # a val that was borrowed from test then counts as test
        try:
            data = open_data(folder, split, **options)
        except NoSplit as error:
            if must:
                raise
            missing = error
            continue
        if must or not any(map(data.same_images, opened.values())):
            opened[split] = data
    if not opened:
        raise missing or DataError(f"{folder} has no splits.")
    return [opened[split] for split in dict.fromkeys(splits) if split in opened]


def _refuse_other_kinds(folder: Path | str, opened: Sequence[DataSet]) -> None:
    first = opened[0]
    for data in opened[1:]:
        if data.task != first.task:
            raise DataError(
                f"{folder}: {first.split!r} has {first.task} annotations, {data.split!r} only {data.task} ones.",
                hint="Prepare both alike (m2f data prepare), or take one split at a time.",
            )
        if [(c.id, c.name) for c in data.categories] != [(c.id, c.name) for c in first.categories]:
            raise DataError(
                f"{folder}: the splits {first.split!r} and {data.split!r} have different classes "
                f"({len(first.categories)} and {len(data.categories)}).",
                hint="Name a class table with --classes, or convert one split at a time.",
            )


def _without_split(data: DataSet) -> DataSet:
    """Remove the folder of the split from the names. Some formats name images relative to the folder above it."""
    for name in in_all_cases(spellings(data.split)):
        if all(record.name.startswith(f"{name}/") for record in data.records):
            shorter = (dataclasses.replace(r, name=r.name.removeprefix(f"{name}/")) for r in data.records)
            return dataclasses.replace(data, records=tuple(shorter))
    return data

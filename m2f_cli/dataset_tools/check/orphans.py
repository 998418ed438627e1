"""Unused files of a data set: images without annotation and annotations without image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from ...data.records import DataSet

_SEPARATORS = "._- "


@dataclass(frozen=True)
class Orphan:
    """Unused files of one folder.

    Attributes:
        split: a split that has files in the folder.
        kind: kind of the files.
        folder: the folder.
        count: number of unused files.
        first: name of the first of them.
    """

    split: str
    kind: Literal["pictures", "annotations"]
    folder: Path
    count: int
    first: str


def orphans(opened: Sequence[DataSet]) -> list[Orphan]:
    """Return the files that lie beside the images or annotations of the splits, look like them, and belong to no split.

    Annotations that many images share, such as COCO's JSON, are left out; only one file for each image is considered.
    """
    images, annotations = _Folders(), _Folders()
    for data in opened:
        for record in data.records:
            if record.image is not None:
                images.add(record.image, data.split)
            for path in _files_of(record.read_annotation):
                if path != record.image and path.suffix != ".json":
                    annotations.add(path, data.split)
    return [*images.unused("pictures", annotations), *annotations.unused("annotations", images)]


def _files_of(reader: Any) -> Iterator[Path]:
    """Yield the files that a reader names, also those of a reader inside it."""
    for field in fields(reader) if is_dataclass(reader) else ():
        value = getattr(reader, field.name)
        if isinstance(value, Path):
            yield value
        elif callable(value):
            yield from _files_of(value)


class _Folders:
    """Names of used files, by folder."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = defaultdict(set)
        self.splits: dict[str, str] = {}

    def add(self, path: Path, split: str) -> None:
        folder, name = os.path.split(path)
        self.names[folder].add(name)
        self.splits.setdefault(folder, split)

    def unused(self, kind: Literal["pictures", "annotations"], others: _Folders) -> Iterator[Orphan]:
        for folder, names in self.names.items():
            if not os.path.isdir(folder):  # a missing folder is reported with its images
                continue
            suffixes = {os.path.splitext(name)[1] for name in names}
            endings = tuple({_ending([name for name in names if name.endswith(suffix)]) for suffix in suffixes})
            used = names | others.names.get(folder, set())
            unused = sorted(
                name
                for name in os.listdir(folder)
                if name.endswith(endings) and name not in used and not name.startswith(".")
            )
            if unused:
                yield Orphan(self.splits[folder], kind, Path(folder), len(unused), unused[0])


def _ending(names: Sequence[str]) -> str:
    """Return the longest common ending of the names that begins with a separator.

    Cityscapes has several kinds of files in one folder, which differ in their endings.
    """
    endings = ({name[at:] for at, each in enumerate(name) if each in _SEPARATORS} for name in names)
    return max(set.intersection(*endings), key=len, default="")

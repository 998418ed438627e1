"""Records: the annotated images of one split. A record is small; its image and annotation are read on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..structures import Task
from ..structures.annotations import Annotation, PanopticAnnotation, SemanticAnnotation
from ..structures.categories import Categories
from ..structures.images import read_image
from ..structures.run_lengths import values_in

_NAMED = 3  # examples that are kept for each reason


@dataclass(frozen=True)
class ImageFile:
    """Reader of an image file, which returns (H, W, 3) uint8 RGB.

    Attributes:
        path: the image file.
        size: the (height, width) that the annotation was made for. None skips the check.
    """

    path: Path
    size: tuple[int, int] | None = None

    def __call__(self) -> np.ndarray:
        """Read the image.

        Raises:
            DataError: the file is missing or unreadable, or its size is not that of the annotation.
        """
        if not is_there(self.path):
            raise DataError(f"The annotated image {self.path} is missing.", hint="Copy it there, or drop its entry.")
        image_HW3 = read_image(self.path)
        if self.size is not None:
            check_size(self.path, image_HW3.shape[:2], self.size)
        return image_HW3


class PackedImage:
    """Reader of an image whose file is a part of another one, such as a shard."""

    __slots__ = ()

    @property
    def suffix(self) -> str:
        """Suffix of the image's file, with its dot."""
        raise NotImplementedError

    def content(self) -> bytes:
        """Return the bytes of the image's file.

        Raises:
            DataError: they cannot be read.
        """
        raise NotImplementedError

    def __call__(self) -> np.ndarray:
        """Read the image, as `ImageFile` does."""
        raise NotImplementedError


def is_there(path: Path) -> bool:
    """Return True if a path that comes from data exists. A name too long for the file system does not exist."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Return True if a path that comes from data leads to a file; see `is_there`."""
    return is_there(path) and path.is_file()


def check_size(
    image: Path | str, size: tuple[int, int], annotated: tuple[int, int], mask: Path | str | None = None
) -> None:
    """Refuse an image whose (height, width) is not that of its annotation.

    Args:
        mask: the file of the annotation, if each image has its own.

    Raises:
        DataError: the sizes differ.
    """
    if tuple(size) == tuple(annotated):
        return
    hint = "Annotation and image must have the same size: export one of them again."
    if tuple(size) == tuple(annotated)[::-1]:
        hint = "It may have been annotated without its EXIF orientation: save it upright, or turn the annotation."
    raise DataError(
        f"{image} has {size[0]} x {size[1]} pixels (height x width), its annotation "
        f"{mask or ''}{' ' if mask else ''}{annotated[0]} x {annotated[1]}.",
        hint=hint,
    )


@dataclass(frozen=True)
class Record:
    """Annotated image. A record can be pickled, because its readers are small frozen objects and not functions.

    Attributes:
        name: the image's path in the folder of images, with "/" between folders and without suffix. Unique in its
            split.
        image: the image file. None for a generated image.
        read_annotation: reads the annotation. It raises DataError if the annotation is damaged or does not fit the
            image.
        height: height in pixels according to the annotation. None if only the image says it.
        width: width in pixels, under the same condition.
        labels: class numbers of which the image has an object that is not a crowd, ascending, without repeats. None if
            only the annotation's content says it.
        read_image: reads the pixels, (H, W, 3) uint8 RGB. By default it reads the file `image`.
        image_id: the image's id in the data set's own files. None if those identify the image by its name.
    """

    name: str
    image: Path | None
    read_annotation: Callable[[], Annotation]
    height: int | None = None
    width: int | None = None
    labels: tuple[int, ...] | None = None
    read_image: Callable[[], np.ndarray] = field(default=None, repr=False)
    image_id: int | str | None = None

    def __post_init__(self) -> None:
        if self.read_image is not None:
            return
        if self.image is None:
            raise ValueError(f"record {self.name!r} has neither image nor read_image")
        size = None if self.height is None or self.width is None else (self.height, self.width)
        object.__setattr__(self, "read_image", ImageFile(self.image, size))


def labels_of(record: Record) -> tuple[int, ...]:
    """Return the class numbers in an image, without those of crowds.

    The annotation is read if the record does not have them.
    """
    if record.labels is not None:
        return record.labels
    annotation = record.read_annotation()
    if isinstance(annotation, SemanticAnnotation):
        return tuple(label for label in values_in(annotation.labels_HW).tolist() if label != annotation.ignore)
    regions = annotation.segments if isinstance(annotation, PanopticAnnotation) else annotation.objects
    return tuple(sorted({item.label for item in regions if not item.iscrowd}))


@dataclass
class PassedOver:
    """Annotations that a reader does not use, by reason.

    Attributes:
        counts: number of annotations for each reason. A reason is a plural, such as "objects without a polygon of three
            points".
        first: where the first annotations of each reason are.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] += count
        named = self.first.setdefault(reason, [])
        if len(named) < _NAMED:
            named.append(where)

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def sentence(self) -> str:
        """Sentence in which every command reports these annotations."""
        reasons = (
            f"{reason} ({count}, such as {', '.join(self.first[reason])})" for reason, count in self.counts.items()
        )
        return f"Passed over: {'; '.join(reasons)}."

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.sentence,) if self else ()

    def to_dict(self) -> list[dict[str, Any]]:
        return [
            {"reason": reason, "count": count, "first": list(self.first[reason])}
            for reason, count in self.counts.items()
        ]


@dataclass(frozen=True)
class DataSet:
    """Annotated images of one split.

    Attributes:
        name: name of its folder.
        format: name of the reader, in the group "formats" of plugins.py.
        split: name of the split.
        task: the task of the annotations. "panoptic" gives PanopticAnnotation, "instance" InstanceAnnotation,
            "semantic" SemanticAnnotation. It is the richest that the data supports, unless another was requested.
        categories: the classes. A class number is a position in this tuple.
        records: one for each image.
        notes: remarks for the user about assumptions and about data that was left out.
        passed_over: annotations that the reader does not use. Its sentence is among the notes.
    """

    name: str
    format: str
    split: str
    task: Task
    categories: Categories
    records: Sequence[Record] = field(repr=False)
    notes: tuple[str, ...] = ()
    passed_over: PassedOver = field(default_factory=PassedOver, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def same_images(self, other: DataSet) -> bool:
        """Return True if both splits lie in the same files. This happens if val was borrowed from test."""
        mine, others = self.records[0], other.records[0]
        if mine.image is None:
            return mine.read_image == others.read_image
        return mine.image == others.image

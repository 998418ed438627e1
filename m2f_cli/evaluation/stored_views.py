"""Reading of views.jsonl, of an evaluation or a prediction. It may be anybody's: each value is checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import DataError, M2FError
from ..results.views import NAME, SCHEMA_VERSION
from ..structures import Task
from ..structures.categories import Categories, Category
from . import journal

Kind = Literal[
    "hit", "class", "split", "merged", "boundary", "missed", "spurious", "duplicate", "crowd", "excused", "unjudged"
]
Edge = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1.0001)]


class _Strict(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class ViewSegment(_Strict):
    """Segment of an image; see `views`. `partner` is the index of the segment that it is compared with."""

    label: Number
    area: Number
    kind: Kind
    partner: Number | None = None
    iou: Share
    score: Share | None = None
    counts: str


class TaskView(_Strict):
    """Annotated and predicted segments of an image, for one task."""

    figure: Percent | None = None
    true: list[ViewSegment]
    found: list[ViewSegment]
    confusion: list[tuple[Number, Number, Number]] = []


class Thumbnail(_Strict):
    """Small image: (height, width), and its JPEG in base64; empty where it is missing."""

    size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]
    jpeg: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*=*$")]


class ImageView(_Strict):
    """View of one image."""

    name: str
    number: Number
    size: tuple[Edge, Edge]
    thumbnail: Thumbnail
    tasks: dict[Task, TaskView]


@dataclass(frozen=True)
class StoredViews:
    """Views of an evaluation.

    Attributes:
        path: the journal.
        tasks: the tasks that were measured, the main one first.
        categories: the classes.
    """

    path: Path
    tasks: list[Task]
    categories: Categories

    def __iter__(self) -> Iterator[ImageView]:
        """Yield the views in the order of the images.

        Raises:
            DataError: a line is damaged, or is no view.
        """
        for line in journal.read(self.path):
            try:
                view = ImageView.model_validate(line)
            except ValidationError as error:
                raise self._refused(error.errors()[0]["loc"]) from error
            for comparison in view.tasks.values():
                for segments, others in ((comparison.true, comparison.found), (comparison.found, comparison.true)):
                    for each in segments:
                        if each.label >= len(self.categories):
                            raise self._refused(("label", each.label))
                        if each.partner is not None and each.partner >= len(others):
                            raise self._refused(("partner", each.partner))
            yield view

    def _refused(self, place: tuple[int | str, ...]) -> DataError:
        return _damaged(self.path, "/".join(map(str, place)))


def open_views(folder: Path) -> StoredViews | None:
    """Return the views of a folder of `m2f eval` or `m2f predict`; None where it has none.

    Raises:
        DataError: the journal is damaged, or of a newer version.
    """
    path = journal.journal_of(folder, name=NAME)
    if not path.is_file():
        return None
    header = journal.read_header(path)
    version = header.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has the version {version!r}, not {SCHEMA_VERSION}.", hint="Use the m2f that wrote it.")
    try:
        categories = tuple(Category.from_dict(each) for each in header["categories"])
        tasks = [task for task in header["tasks"] if task in ("panoptic", "instance", "semantic")]
    except (M2FError, KeyError, TypeError) as error:
        raise _damaged(path, "header") from error
    return StoredViews(path, tasks, categories)


def _damaged(path: Path, place: str) -> DataError:
    return DataError(
        f"{path} is damaged: {place} is wrong.",
        hint="Remove that file, or evaluate again: the page does without images.",
    )

"""The pages of a data set: that of `m2f data check` with counts, problems and images, and that of `m2f data view`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.records import DataSet, Record
from ..dataset_tools.check.summary import DataReport, SplitReport, class_rows, edge_names
from ..dataset_tools.preview import Preview, as_result
from ..errors import DataError
from ..evaluation.stored_views import ImageView
from ..results.views import EDGE, segments_of, small_size, thumbnail
from ..structures import Task
from ..structures.categories import Categories
from ..structures.images import read_image
from .bars import BarChart, ColumnChart, bar_chart, column_chart
from .gallery import gallery_of
from .page import jpeg_uri, write_page
from .tables import ClassColumn, ClassRow, FigureTable

SAMPLES = 24  # images of each split that nothing is wrong with
MOST_REMARKED = 100  # images of each problem of a split
ANNOTATED = "annotated"
NO_IMAGE = (120, 160)  # (height, width) in place of an image that cannot be read
EMPTY, REPEATED, SHARED = "nothing-annotated", "repeated-image", "in-two-splits"


@dataclass(frozen=True)
class ProblemRow:
    """Kind of problem with the images that have it: name and text of each."""

    kind: str
    images: list[tuple[str, str]]


@dataclass(frozen=True)
class SplitRow:
    """Counts of one split.

    Attributes:
        name: the split.
        images, unusable, empty, objects, most: numbers of images and objects; `most` is that of one image.
        megabytes: size of all image files.
        notes: remarks of the reader.
    """

    name: str
    images: int
    unusable: int
    empty: int
    objects: int
    most: int
    megabytes: float
    notes: list[str]


def write_check_page(
    report: DataReport, opened: Sequence[DataSet], path: Path, samples: int = SAMPLES, edge: int = EDGE
) -> Path:
    """Write the page of `m2f data check` and return it.

    Args:
        report: the report.
        opened: the splits of the report, in its order. Their images are read again for the page.
        path: the page.
        samples: number of images of each split that nothing is wrong with.
        edge: longest edge of the images in pixels.

    Raises:
        M2FError: the file cannot be written.
    """
    data = opened[0]
    problems = problems_of(report)
    remarks: dict[str, list[tuple[str, str]]] = {}
    for row in problems:
        for name, text in row.images[:MOST_REMARKED]:
            remarks.setdefault(name, []).append((row.kind, text or row.kind))
    views = [view for each in opened for view in _views(each, remarks, samples, edge)]
    for number, view in enumerate(views):
        view["number"] = number
    tasks: list[Task] = ["semantic" if data.task == "semantic" else "panoptic"]
    images = [ImageView.model_validate(view) for view in views]
    return write_page(
        "data.html",
        path,
        title=f"{data.name}: data",
        data=data,
        fails=len(report.errors),
        findings=report.findings,
        problems=problems,
        splits=[_split_row(split) for split in report.splits],
        classes=_class_table(report.splits, data.categories),
        charts=_charts(report.splits),
        sizes=_sizes(report.splits),
        gallery=gallery_of(tasks, data.categories, images, alone="annotation", remarks=remarks),
    )


def write_view_page(data: DataSet, shown: Sequence[Preview], path: Path) -> Path:
    """Write the page of `m2f data view` and return it.

    Raises:
        M2FError: the file cannot be written.
    """
    views = []
    for view in shown:
        images = zip(view.images, ("as annotated", "as training sees it"), strict=False)
        views.append((view.name, [{"uri": jpeg_uri(image), "caption": text} for image, text in images]))
    return write_page("view.html", path, title=f"{data.name}, {data.split}", views=views, of=len(data))


def problems_of(report: DataReport) -> list[ProblemRow]:
    """Return the problems of single images, each with its images as "split/name"."""
    found: dict[str, list[tuple[str, str]]] = {}
    for split in report.splits:
        for problem in split.problems:
            found.setdefault(problem.kind, []).append((f"{split.split}/{problem.name}", problem.message))
        for pair in split.repeats:
            found.setdefault(REPEATED, []).append((f"{split.split}/{pair.name}", f"the same file as {pair.other}"))
        for name in split.empty:
            found.setdefault(EMPTY, []).append((f"{split.split}/{name}", ""))
    for pair in report.duplicates:
        how = "the same file as" if pair.identical else "looks like"
        ends = ((pair.split, pair.name), (pair.other_split, pair.other))
        for (split_name, name), (other_split, other) in (ends, ends[::-1]):
            found.setdefault(SHARED, []).append((f"{split_name}/{name}", f"{how} {other} of {other_split}"))
    return [ProblemRow(kind, images) for kind, images in found.items()]


# --- images -----------------------------------------------------------------------------------------------------------


def _views(data: DataSet, remarks: Mapping[str, Any], samples: int, edge: int) -> list[dict[str, Any]]:
    """Return the views of the images of a split with remarks, and of some others, evenly spread."""
    step = max(1, len(data.records) // max(1, samples))
    chosen = {record.name for record in data.records[::step][:samples]}
    return [
        _view(f"{data.split}/{record.name}", record, data, edge)
        for record in data.records
        if record.name in chosen or f"{data.split}/{record.name}" in remarks
    ]


def _view(name: str, record: Record, data: DataSet, edge: int) -> dict[str, Any]:
    """Return the view of an image as far as it can be read."""
    image = _image(record)
    size = NO_IMAGE if image is None else (int(image.shape[0]), int(image.shape[1]))
    small, found = small_size(size, edge), []
    with suppress(DataError):
        result = as_result(record.read_annotation(), data.categories)
        if image is None or tuple(result.size) == size:
            found = [each for each in segments_of(result, small) if each["label"] < len(data.categories)]
    task: Task = "semantic" if data.task == "semantic" else "panoptic"
    sides = {"true": [], "found": [{**each, "score": None} for each in found]}
    return {"name": name, "size": size, "thumbnail": thumbnail(image, small), "tasks": {task: sides}}


def _image(record: Record) -> np.ndarray | None:
    """Return the pixels of an image, also where their size is not that of the annotation; None without any."""
    for read in (record.read_image, lambda: read_image(record.image)):
        with suppress(DataError):
            pixels: np.ndarray = read()
            return pixels
    return None


# --- counts -----------------------------------------------------------------------------------------------------------


def _split_row(split: SplitReport) -> SplitRow:
    counts = split.description
    return SplitRow(
        split.split,
        counts.images,
        len(split.problems),
        split.num_empty,
        sum(counts.objects),
        max(counts.objects, default=0),
        split.num_bytes / 1e6,
        list(split.notes),
    )


def _class_table(splits: Sequence[SplitReport], categories: Categories) -> FigureTable:
    columns, rows = [], []
    for split in splits:
        for what in ("objects", "images"):
            columns.append(ClassColumn(f"{split.split}.{what}", f"{what} of {split.split}", "", False))
    numbers = {category.name: i for i, category in enumerate(categories)}
    for first, counts in class_rows(splits):
        values: list[float | None] = []
        for each in counts:
            values += [None, None] if each is None else [float(each.objects), float(each.pictures)]
        rows.append(ClassRow(first.name, numbers.get(first.name), "thing" if first.isthing else "stuff", values))
    return FigureTable(columns, rows)


def _charts(splits: Sequence[SplitReport]) -> list[ColumnChart]:
    """Return objects by size, and images by their number of objects, over all splits."""
    edges = sum(np.array(split.object_edges) for split in splits)
    names = ["0", *(name.split(" ")[-1] for name in edge_names()[:-1]), "∞"]
    areas = [{ANNOTATED: int(count)} for count in np.atleast_1d(edges).tolist()]
    objects = [count for split in splits for count in split.description.objects]
    width = max(1, -(-(max(objects, default=0) + 1) // 12))
    bins = Counter(count // width for count in objects)
    columns = [{ANNOTATED: bins[i]} for i in range(max(bins, default=-1) + 1)]
    bounds = [str(i * width) for i in range(len(columns) + 1)]
    return [
        column_chart("Sizes of objects", "square root of the area in pixels", names, areas),
        column_chart("Images by number of objects", "objects", bounds, columns),
    ]


def _sizes(splits: Sequence[SplitReport]) -> BarChart:
    sizes: Counter[tuple[int, int]] = Counter()
    for split in splits:
        sizes.update(split.description.sizes)
    rows = [(f"{width} x {height}", {ANNOTATED: float(count)}) for (height, width), count in sizes.items()]
    caption = f"Width x height in pixels; {len(sizes)} different."
    return bar_chart("Sizes of images", caption, rows, unit="images", most=12)

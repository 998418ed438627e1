"""Rows: results as plain values, one row per image, from which the result is made again exactly.

A row is what tables and shards hold. Its lists have one entry for each segment, object or class of the image. The
masks are COCO's compressed run lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ..errors import DataError
from ..structures import Task
from ..structures.categories import Categories
from ..structures.rgb import MAX_PIXELS
from ..structures.rle import RLE, Size, as_text, encode_ids, runs_of
from .types import Instances, PanopticMap, Result, Segment, SemanticMap

Edge = Annotated[int, Field(gt=0, le=MAX_PIXELS)]
Score = Annotated[float, Field(ge=0, le=2)]  # rounding may take it above 1
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Row(TypedDict):
    """An image and what was found in it: panoptic segments, instances (best first) or the classes that have pixels."""

    id: Annotated[str, "Name of the results of the image."]
    uri: Annotated[str, "The image."]
    width: Annotated[Edge, "Pixels."]
    height: Annotated[Edge, "Pixels."]
    task: Annotated[Task, "The task."]
    segment_id: Annotated[list[Int32], "Panoptic: ids in the map. Else positions, from 1 on."]
    label: Annotated[list[str], "Names of the classes."]
    category_id: Annotated[list[Int32], "Ids of the classes in their data set."]
    isthing: Annotated[list[bool], "True for countable objects."]
    score: Annotated[list[Score | None], "Confidence, 0 to 1. None for a class of a semantic map."]
    bbox: Annotated[list[Annotated[list[Int32], Field(min_length=4, max_length=4)]], "[x, y, width, height] in pixels."]
    area: Annotated[list[Int32], "Pixels."]
    counts: Annotated[list[str], "COCO's compressed run lengths."]


LISTS = ("segment_id", "label", "category_id", "isthing", "score", "bbox", "area", "counts")


@functools.cache
def _adapter() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


def checked(value: Any) -> Row:
    """Return a value of unknown origin if it is a row.

    Raises:
        ValueError: it is none.
    """
    try:
        row = _adapter().validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError("no row") from error
    if len({len(row[key]) for key in LISTS}) != 1 or row["width"] * row["height"] > MAX_PIXELS:  # type: ignore[literal-required]
        raise ValueError("no row")
    return row


def row_of(result: Result, id: str, uri: str) -> Row:
    """Return the row of a result.

    Args:
        result: the result.
        id: name of the results of the image.
        uri: the image.
    """
    ids, labels, scores, areas, rles = _parts(result)
    categories = [result.categories[label] for label in labels]
    height, width = result.size
    boxes: list[list[float]] = coco_mask.toBbox(rles).tolist() if rles else []
    return {
        "id": id,
        "uri": uri,
        "width": width,
        "height": height,
        "task": result.task,
        "segment_id": ids,
        "label": [category.name for category in categories],
        "category_id": [category.id for category in categories],
        "isthing": [category.isthing for category in categories],
        "score": scores,
        "bbox": [[int(edge) for edge in box] for box in boxes],
        "area": areas,
        "counts": [as_text(rle)["counts"] for rle in rles],
    }


def _parts(result: Result) -> tuple[list[int], list[int], list[float | None], list[int], list[RLE]]:
    """Return ids, class numbers, scores, areas and run lengths of what a result holds."""
    if isinstance(result, PanopticMap):
        segments = result.segments
        ids = [each.id for each in segments]
        scores: list[float | None] = [float(each.score) for each in segments]
        areas = [int(each.area) for each in segments]
        return ids, [each.label for each in segments], scores, areas, encode_ids(result.ids_HW, ids)
    if isinstance(result, SemanticMap):
        labels = [label for label in np.unique(result.labels_HW).tolist() if label < len(result.categories)]
        rles = encode_ids(result.labels_HW, labels)
        scores = [None] * len(labels)
    elif isinstance(result, Instances):
        labels, rles = [int(label) for label in result.labels_N], result.rles
        scores = [float(score) for score in result.scores_N]
    else:
        raise TypeError(f"{type(result).__name__} is no result of this package")
    return list(range(1, len(labels) + 1)), labels, scores, [int(coco_mask.area(rle)) for rle in rles], rles


def result_of(row: Row, categories: Categories) -> Result:
    """Return the result that a row was made of, equal in every value.

    Args:
        row: the row.
        categories: classes of the model.

    Raises:
        DataError: the row has a class that is not among `categories`.
    """
    numbers = {category.id: number for number, category in enumerate(categories)}
    unknown = next((key for key in row["category_id"] if key not in numbers), None)
    if unknown is not None:
        raise DataError(f"The row of {row['id']} has the class id {unknown}, which the model's classes do not have.")
    size, labels = (row["height"], row["width"]), [numbers[key] for key in row["category_id"]]
    if row["task"] == "panoptic":
        parts = zip(row["segment_id"], labels, row["score"], row["area"], strict=True)
        return PanopticMap(size, categories, id_map(row), [Segment(*each) for each in parts])  # type: ignore[arg-type]
    if row["task"] == "semantic":
        kind = np.uint8 if len(categories) < 255 else np.uint16
        return SemanticMap(size, categories, _painted(row, labels, np.iinfo(kind).max, kind))
    rles = [{"size": list(size), "counts": counts.encode()} for counts in row["counts"]]
    return Instances(size, categories, np.array(labels, np.int64), np.array(row["score"], np.float32), rles)


def id_map(row: Row) -> np.ndarray:
    """Return the segment ids of the pixels (H, W, int32), 0 where there is none. The first of several is on top."""
    return _painted(row, row["segment_id"], 0, np.int32)


def _painted(row: Row, values: Iterable[int], fill: int, kind: type[np.generic]) -> np.ndarray:
    size: Size = (row["height"], row["width"])
    map_WH = np.full(size[::-1], fill, dtype=kind)  # run lengths go down the columns
    pixels_P = map_WH.reshape(-1)
    for value, counts in reversed(list(zip(values, row["counts"], strict=True))):
        for start, end in zip(*(edges.tolist() for edges in runs_of({"size": size, "counts": counts})), strict=True):
            pixels_P[start:end] = value
    return np.ascontiguousarray(map_WH.T)

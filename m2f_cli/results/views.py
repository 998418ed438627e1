"""A result in small, for a page: its image as a JPEG, and its segments with their masks as run lengths.

    {"name", "size", "thumbnail": {"size", "jpeg"}, "tasks": {task: {"true": [], "found": [segment, …]}}}

A segment has `label`, `area` (pixels of the whole image), `score` and `counts` (COCO run lengths of the thumbnail's
size). Where nothing is compared, its `kind` is "unjudged". `evaluation.views` compares results with annotations.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..structures import Task
from ..structures.categories import Categories
from ..structures.rle import as_text, encode_ids, encode_mask
from .types import Instances, PanopticMap, Result, SemanticMap

SCHEMA_VERSION = 1
NAME = "views.jsonl"  # the journal of the views of a folder
EDGE = 320  # pixels, the longest edge of a thumbnail
QUALITY = 72  # of a thumbnail's JPEG
LEAST_SCORE = 0.05  # of an object that is kept; published settings keep a hundred of any score
UNJUDGED = "unjudged"
Size = tuple[int, int]
Segments = list[dict[str, Any]]


def header_of(tasks: Sequence[Task], categories: Categories) -> dict[str, Any]:
    """Return the header of the journal."""
    classes = [category.to_dict() for category in categories]
    return {"schema_version": SCHEMA_VERSION, "tasks": list(tasks), "categories": classes}


def view_of_result(name: str, result: Result, edge: int = EDGE) -> dict[str, Any]:
    """Return the view of one result, without its number.

    Args:
        name: the name of the image.
        result: the result. Without the pixels of its image, the view has no thumbnail.
        edge: longest edge of the thumbnail in pixels; smaller images are not enlarged.
    """
    size = (int(result.size[0]), int(result.size[1]))
    small = small_size(size, edge)
    sides = {"true": [], "found": segments_of(result, small)}
    return {
        "name": name,
        "size": list(size),
        "thumbnail": thumbnail(result.image, small),
        "tasks": {result.task: sides},
    }


def segments_of(result: Result, small: Size) -> Segments:
    """Return the segments of a result, those of the best score first where objects overlap."""
    if isinstance(result, Instances):
        kept = np.flatnonzero(result.scores_N >= LEAST_SCORE)
        return [
            _segment(
                int(result.labels_N[i]),
                int(coco_mask.area(result.rles[i])),
                float(result.scores_N[i]),
                encode_mask(sampled(coco_mask.decode(result.rles[i]), small)),
            )
            for i in kept.tolist()
        ]
    if isinstance(result, PanopticMap):
        rles = encode_ids(sampled(result.ids_HW, small), [each.id for each in result.segments])
        return [
            _segment(each.label, each.area, each.score, rle) for each, rle in zip(result.segments, rles, strict=True)
        ]
    assert isinstance(result, SemanticMap)
    areas = np.bincount(result.labels_HW.ravel(), minlength=len(result.categories))
    labels = np.flatnonzero(areas[: len(result.categories)]).tolist()
    rles = encode_ids(sampled(result.labels_HW, small), labels)
    return [_segment(label, int(areas[label]), None, rle) for label, rle in zip(labels, rles, strict=True)]


def _segment(label: int, area: int, score: float | None, rle: dict[str, Any]) -> dict[str, Any]:
    number = None if score is None else round(float(score), 4)
    plain = {"label": label, "area": area, "kind": UNJUDGED, "partner": None, "iou": 0.0}
    return {**plain, "score": number, "counts": as_text(rle)["counts"]}


def thumbnail(image: Any, small: Size) -> dict[str, Any]:
    """Return an image of (H, W, 3) in small as it stands in a view; without content if there are no pixels."""
    return {"size": list(small), "jpeg": jpeg(image, small) if isinstance(image, np.ndarray) else ""}


def small_size(size: Size, edge: int) -> Size:
    """Return the (height, width) of a thumbnail."""
    scale = min(1.0, edge / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def sampled(map_HW: np.ndarray, small: Size) -> np.ndarray:
    """Return a map at the size of a thumbnail: of each of its pixels the value in the middle."""
    rows, columns = ((2 * np.arange(n) + 1) * whole // (2 * n) for n, whole in zip(small, map_HW.shape, strict=True))
    found: np.ndarray = map_HW[rows[:, None], columns]
    return found


def jpeg(image_HW3: np.ndarray, small: Size) -> str:
    """Return an RGB image as a JPEG of the size of a thumbnail, in base64."""
    resized = cv2.resize(image_HW3, small[::-1], interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", resized[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return base64.b64encode(content.tobytes()).decode()

"""Writer of COCO instances: annotations/instances_{split}.json and the images in {split}/."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask as coco_mask

from ...data.formats.coco_instance import KIND
from ...results.writers import coco_categories
from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.categories import Categories
from ...structures.rle import as_text, encode_shape
from .base import Lost, OutputFormat, Place, Rows, Writer


@dataclass(frozen=True)
class CocoInstances(Writer):
    """Writer of COCO instances. Polygons stay the same; run lengths are written compressed."""

    categories: Categories
    kind: ClassVar[str] = KIND

    def image(self, place: Place) -> str:
        return f"{place.split}/{place.file_name}"

    def annotate(self, root: Path, place: Place, annotation: InstanceAnnotation) -> tuple[Rows, Lost]:
        rows = {
            "images": [image_row(place, annotation.size)],
            "annotations": [self._row(item, place, annotation.size) for item in annotation.objects],
        }
        return rows, Counter()

    def _row(self, item: AnnotatedObject, place: Place, size: tuple[int, int]) -> dict[str, Any]:
        rle = encode_shape(item.shape, size)
        return {
            "id": None,
            "image_id": place.image_id,
            "category_id": self.categories[item.label].id,
            "segmentation": segmentation(item, rle),
            "iscrowd": int(item.iscrowd),
            "area": float(coco_mask.area(rle)) if item.area is None else item.area,
            "bbox": coco_mask.toBbox(rle).tolist(),
        }

    def shared(self, split: str) -> str:
        return f"annotations/{self.kind}_{split}.json"

    def head(self) -> dict[str, Any]:
        return {"categories": coco_categories(self.categories)}


def image_row(place: Place, size: tuple[int, int]) -> dict[str, Any]:
    return {"id": place.image_id, "file_name": place.file_name, "height": int(size[0]), "width": int(size[1])}


def segmentation(item: AnnotatedObject, rle: dict[str, Any]) -> Any:
    """Return the `segmentation` of an object in a COCO JSON. Polygons stay polygons."""
    if isinstance(item.shape, list) and item.shape:
        return [np.asarray(points_P2, dtype=np.float64).ravel().tolist() for points_P2 in item.shape]
    return as_text(rle)


TARGET = OutputFormat(
    task="instance",
    keeps=frozenset({"category ids", "colours", "image ids", "areas"}),
    open=lambda categories, name: CocoInstances(categories),
)

"""Writer of LabelMe: {split}/ with images and a JSON beside each, and classes.yaml, which LabelMe itself ignores."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ...data.formats.labelme import CROWD
from ...runtime.text import json_text
from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.categories import Categories
from ...structures.rle import encode_shape
from .base import Lost, OutputFormat, Place, Rows, Writer, save_classes, save_text
from .outlines import rle_outlines

_VERSION = "5.5.0"  # version of LabelMe whose form of masks is written


@dataclass(frozen=True)
class LabelMeFiles(Writer):
    """Writer of LabelMe files.

    Parts of one object share a group_id. An object with holes is a mask. A crowd has the flag `iscrowd`.
    """

    categories: Categories
    name: str

    def image(self, place: Place) -> str:
        return f"{place.split}/{place.file_name}"

    def annotate(self, root: Path, place: Place, annotation: InstanceAnnotation) -> tuple[Rows, Lost]:
        objects = [(item, shapes_of(item, annotation.size)) for item in annotation.objects]
        shapes = [
            self._shape(item, part, number if len(parts) > 1 else None)
            for number, (item, parts) in enumerate(objects, 1)
            for part in parts
        ]
        tree = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(place.file_name).name,
            "imageData": None,
            "imageHeight": int(annotation.size[0]),
            "imageWidth": int(annotation.size[1]),
        }
        save_text(root / place.split / f"{place.name}.json", json_text(tree, indent=1))
        return {}, Counter(hidden=sum(not parts for _, parts in objects))

    def _shape(self, item: AnnotatedObject, part: dict[str, Any], group: int | None) -> dict[str, Any]:
        flags = {CROWD: True} if item.iscrowd else {}
        return {"label": self.categories[item.label].name, "group_id": group, "description": "", "flags": flags, **part}

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        save_classes(root, self.name, self.categories)


def shapes_of(item: AnnotatedObject, size: tuple[int, int]) -> list[dict[str, Any]]:
    if isinstance(item.shape, list):
        return [_polygon(points_P2) for points_P2 in item.shape]
    rle = encode_shape(item.shape, size)
    outer, holes = rle_outlines(rle)
    return [_mask(rle)] if holes else [_polygon(points_P2) for points_P2 in outer]


def _polygon(points_P2: np.ndarray) -> dict[str, Any]:
    return {"shape_type": "polygon", "points": np.asarray(points_P2, dtype=np.float64).tolist(), "mask": None}


def _mask(rle: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the mask in its box as a PNG. The corners are the centres of the first and the last pixel."""
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(rle))
    inside_HW = coco_mask.decode(rle)[top : top + height, left : left + width].astype(bool)
    file = io.BytesIO()
    Image.fromarray(inside_HW).save(file, format="PNG")
    corners = [[left, top], [left + width - 1, top + height - 1]]
    return {"shape_type": "mask", "points": corners, "mask": base64.b64encode(file.getvalue()).decode("ascii")}


TARGET = OutputFormat(task="instance", keeps=frozenset({"category ids", "colours"}), open=LabelMeFiles)

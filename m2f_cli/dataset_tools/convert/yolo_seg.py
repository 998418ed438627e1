"""Writer of YOLO segmentation: data.yaml, images/{split}/ and labels/{split}/NAME.txt with a polygon in each line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.categories import Categories
from ...structures.rle import encode_polygons, encode_shape
from .base import Lost, OutputFormat, Place, Rows, Writer, save_text
from .outlines import joined, rle_outlines, same_pixels

# Pixels. COCO's rule rounds tenths, on which many coordinates lie, upwards, which must survive division and text.
_NUDGE = 1e-5


@dataclass(frozen=True)
class YoloPolygons(Writer):
    """Writer of YOLO segmentation.

    An object of several parts or with holes becomes one polygon with seams, which covers the same pixels.
    """

    categories: Categories

    def image(self, place: Place) -> str:
        return f"images/{place.split}/{place.file_name}"

    def annotate(self, root: Path, place: Place, annotation: InstanceAnnotation) -> tuple[Rows, Lost]:
        kept = [item for item in annotation.objects if not item.iscrowd]
        lines = [(item.label, polygon_line(item, annotation.size)) for item in kept]
        lost = Counter(crowds=len(annotation.objects) - len(kept), hidden=sum(line is None for _, line in lines))
        text = "".join(f"{label} {line}\n" for label, line in lines if line is not None)
        save_text(root / "labels" / place.split / f"{place.name}.txt", text)
        return {}, lost

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        names = {number: category.name for number, category in enumerate(self.categories)}
        tree = {"path": ".", **{split: f"images/{split}" for split in splits}, "nc": len(names), "names": names}
        save_text(root / "data.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def polygon_line(item: AnnotatedObject, size: tuple[int, int]) -> str | None:
    """Return x y x y … as shares of the image's edges, or None for an object without a pixel.

    The polygons of the object are used if they cover the same pixels after rounding. Otherwise the line is the exact
    outline of its mask.
    """
    rle = encode_shape(item.shape, size)
    if not coco_mask.area(rle):
        return None
    if isinstance(item.shape, list):
        points_P2 = joined([np.asarray(part_P2, dtype=np.float64) for part_P2 in item.shape])
        line = _shares(points_P2 + _NUDGE, size)
        if same_pixels(encode_polygons([_points(line, size)], size), rle):
            return line
    outer, holes = rle_outlines(rle)
    return _shares(joined([*outer, *holes]), size)


def _shares(points_P2: np.ndarray, size: tuple[int, int]) -> str:
    shares_P2 = np.clip(points_P2 / (size[1], size[0]), 0, 1)
    return " ".join(f"{value:.10g}" for value in shares_P2.ravel().tolist())


def _points(line: str, size: tuple[int, int]) -> np.ndarray:
    return np.array([float(word) for word in line.split()]).reshape(-1, 2) * (size[1], size[0])


TARGET = OutputFormat(task="instance", keeps=frozenset(), open=lambda categories, name: YoloPolygons(categories))

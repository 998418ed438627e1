"""Writes COCO panoptic: annotations/panoptic_{split}.json, PNGs in panoptic_{split}/, the pictures in {split}/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ...data.formats.coco_panoptic import KIND
from ...errors import DataError
from ...structures.annotations import PanopticTruth
from ...structures.categories import Categories
from ...structures.run_lengths import values_in
from .base import Lost, OutputFormat, Place, Rows, save_png
from .coco_instance import category_rows, image_row

MOST = (1 << 24) - 1  # an id is an RGB colour


@dataclass(frozen=True)
class CocoPanoptic:
    """Segments keep their ids; one without a pixel stays in the json, since it counts as missed."""

    categories: Categories

    def picture(self, place: Place) -> str:
        return f"{place.split}/{place.file_name}"

    def annotate(self, root: Path, place: Place, truth: PanopticTruth) -> tuple[Rows, Lost]:
        ids = [segment.id for segment in truth.segments]
        if ids and not 0 < min(ids) <= max(ids) <= MOST:
            raise DataError(f"{place.name} has segments with ids from {min(ids)} to {max(ids)}: 1 to {MOST} fit.")
        measured = measure(truth.ids_HW)
        infos = []
        for segment in truth.segments:
            area, box = measured.get(segment.id, (0, [0, 0, 0, 0]))
            category = self.categories[segment.label].id
            infos.append(
                {"id": segment.id, "category_id": category, "iscrowd": int(segment.iscrowd), "area": area, "bbox": box}
            )
        png = f"{place.name}.png"
        save_png(root / f"{KIND}_{place.split}" / png, id_colors(truth.ids_HW))
        annotation = {"image_id": place.image_id, "file_name": png, "segments_info": infos}
        return {"images": [image_row(place, truth.size)], "annotations": [annotation]}, Counter()

    def shared(self, split: str) -> str:
        return f"annotations/{KIND}_{split}.json"

    def head(self) -> dict[str, Any]:
        return {"categories": category_rows(self.categories)}

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        pass


def id_colors(ids_HW: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: id = R + 256 G + 65536 B (docs/methods/published-behaviour.md#8-1)."""
    return np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16 & 255], axis=-1).astype(np.uint8)


def measure(ids_HW: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """The area and the box [x, y, width, height] of each id, in pixels."""
    ids = values_in(ids_HW)
    numbers_HW = np.searchsorted(ids, ids_HW).astype(np.int32) + 1
    areas = np.bincount(numbers_HW.ravel())[1:].tolist()
    boxes = [
        [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        for rows, columns in ndimage.find_objects(numbers_HW)
    ]
    return {key: pair for key, *pair in zip(ids.tolist(), areas, boxes, strict=True)}


TARGET = OutputFormat(
    task="panoptic",
    keeps=frozenset({"category ids", "colours", "image ids"}),
    open=lambda categories, name: CocoPanoptic(categories),
)

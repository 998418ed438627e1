"""Writer of COCO panoptic: annotations/panoptic_{split}.json, PNGs in panoptic_{split}/, the images in {split}/."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...data.formats.coco_panoptic import KIND
from ...errors import DataError
from ...results.regions import windows_of
from ...structures.annotations import PanopticAnnotation, ids_to_rgb
from ...structures.run_lengths import areas_in
from .base import Lost, OutputFormat, Place, Rows, save_png
from .coco_instance import CocoInstances, image_row

MOST = (1 << 24) - 1  # an id is an RGB colour


@dataclass(frozen=True)
class CocoPanoptic(CocoInstances):
    """Writer of COCO panoptic. Segments keep their ids.

    A segment without a pixel stays in the JSON, because it counts as missed.
    """

    kind: ClassVar[str] = KIND

    def annotate(self, root: Path, place: Place, annotation: PanopticAnnotation) -> tuple[Rows, Lost]:
        refuse_large_ids(annotation, place.name)
        measured = measure(annotation.ids_HW)
        infos = []
        for segment in annotation.segments:
            area, box = measured.get(segment.id, (0, [0, 0, 0, 0]))
            category = self.categories[segment.label].id
            infos.append(
                {"id": segment.id, "category_id": category, "iscrowd": int(segment.iscrowd), "area": area, "bbox": box}
            )
        png = f"{place.name}.png"
        save_png(root / f"{KIND}_{place.split}" / png, ids_to_rgb(annotation.ids_HW))
        row = {"image_id": place.image_id, "file_name": png, "segments_info": infos}
        return {"images": [image_row(place, annotation.size)], "annotations": [row]}, Counter()


def refuse_large_ids(annotation: PanopticAnnotation, name: str) -> None:
    """Refuse segments whose ids are no colours of a PNG.

    Raises:
        DataError: an id is not from 1 to `MOST`.
    """
    ids = [segment.id for segment in annotation.segments]
    if ids and not 0 < min(ids) <= max(ids) <= MOST:
        raise DataError(f"{name} has segments with ids from {min(ids)} to {max(ids)}: 1 to {MOST} fit.")


def measure(ids_HW: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Return the area and the box [x, y, width, height] of each id, in pixels."""
    areas, windows = areas_in(ids_HW), windows_of(ids_HW)
    return {
        key: (areas[key], [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start])
        for key, (rows, columns) in windows.items()
    }


TARGET = OutputFormat(
    task="panoptic",
    keeps=frozenset({"category ids", "colours", "image ids"}),
    open=lambda categories, name: CocoPanoptic(categories),
)

"""Writer of shards of WebDataset: {split}/00000.tar, …, {split}/index.json and classes.json.

Annotations stay of the task of the source: objects may overlap, and segments need no polygons.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.formats.webdataset import CLASSES, IDS, INDEX, JSON, Shard, index_of
from ...results.shards.archives import archive
from ...results.shards.webdataset import key_of
from ...runtime.text import json_text
from ...storage import files
from ...structures import Task
from ...structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    Annotation,
    InstanceAnnotation,
    SemanticAnnotation,
    as_panoptic,
    ids_to_rgb,
)
from ...structures.categories import Categories
from ...structures.rle import encode_shape
from .base import Lost, OutputFormat, Place, Rows, Writer, save_png, save_text
from .coco_instance import segmentation
from .coco_panoptic import refuse_large_ids

SHARD_SIZE = 1000  # images
_SAMPLES = ".samples"  # folder of a split for what is not in a shard yet: no name of an image is that of a shard there


@dataclass(frozen=True)
class WebDatasetShards(Writer):
    """Writer of shards. A sample lies in files of its own until the images of its shard are written.

    A label map is written as segments, one for each class.

    Attributes:
        categories: the classes.
        task: task of the annotations.
        images_per_file: images of a shard.
    """

    categories: Categories
    task: Task = "panoptic"
    images_per_file: int = SHARD_SIZE

    def image(self, place: Place) -> str:
        return f"{place.split}/{_SAMPLES}/{key_of(place.name)}{place.suffix}"

    def annotate(self, root: Path, place: Place, annotation: Annotation) -> tuple[Rows, Lost]:
        stem = root / place.split / _SAMPLES / key_of(place.name)
        height, width = map(int, annotation.size)
        head = {"name": place.name, "image_id": place.image_id, "height": height, "width": width}
        if isinstance(annotation, InstanceAnnotation):
            rows = {"annotations": [self._object(item, annotation.size) for item in annotation.objects]}
        else:
            panoptic = as_panoptic(annotation) if isinstance(annotation, SemanticAnnotation) else annotation
            refuse_large_ids(panoptic, place.name)
            save_png(stem.with_name(f"{stem.name}.{IDS}"), ids_to_rgb(panoptic.ids_HW))
            rows = {"segments_info": [self._segment(each) for each in panoptic.segments]}
        save_text(stem.with_name(f"{stem.name}.{JSON}"), json_text({**head, **rows}))
        return {}, Counter()

    def _segment(self, segment: AnnotatedSegment) -> dict[str, Any]:
        category = self.categories[segment.label].id
        return {"id": int(segment.id), "category_id": category, "iscrowd": int(segment.iscrowd)}

    def _object(self, item: AnnotatedObject, size: tuple[int, int]) -> dict[str, Any]:
        row = {
            "category_id": self.categories[item.label].id,
            "segmentation": segmentation(item, encode_shape(item.shape, size)),
            "iscrowd": int(item.iscrowd),
        }
        return row if item.area is None else {**row, "area": float(item.area)}

    def bundle(self, root: Path, number: int, places: Sequence[Place]) -> None:
        with archive(root / places[0].split / f"{number:05d}.tar") as shard:
            for place in places:
                key, folder = key_of(place.name), root / place.split / _SAMPLES
                for name in (f"{key}{place.suffix}", f"{key}.{JSON}", f"{key}.{IDS}"):
                    path = folder / name
                    if path.is_file():
                        shard.add(name, path.read_bytes())
                        path.unlink()

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        for split in splits:
            folder = root / split
            if not folder.is_dir():  # not one of its images could be used
                continue
            shutil.rmtree(folder / _SAMPLES)  # its folders are empty now
            shards = [Shard(str(path), path.name, files.info(str(path))) for path in sorted(folder.glob("*.tar"))]
            rows = [index_of(shard).model_dump() for shard in shards]
            save_text(folder / INDEX, json_text({"shards": rows}, separators=(",", ":")))
        classes = [category.to_dict() for category in self.categories]
        save_text(root / CLASSES, json_text({"task": self.task, "classes": classes}, indent=1))


TARGET = OutputFormat(
    task=None,
    keeps=frozenset({"category ids", "colours", "image ids", "areas"}),
    open=lambda categories, name: WebDatasetShards(categories),
)

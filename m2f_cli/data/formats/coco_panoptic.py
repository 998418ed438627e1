"""COCO panoptic: annotations/panoptic_{split}.json and PNGs (docs/methods/published-behaviour.md#8-1).

The colours of a PNG are the ids of segments.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures import Task, schemas
from ...structures.annotations import AnnotatedSegment, PanopticAnnotation, ReadAs
from ...structures.images import image_size
from ...structures.run_lengths import values_in
from ..records import DataSet, PassedOver, Record, check_size, is_there
from . import coco_instance
from .base import Format, Parts, ReadOptions, choose_task
from .class_map import ClassMap, is_crowd, map_classes, parse_categories
from .coco import CocoFile, find_json, has_json, image_folders, read_coco
from .files import read_ids
from .layout import as_found, folder_at, image_folder, record_name

KIND = "panoptic"
_KEYS = ("id", "category_id", "iscrowd")
_NOT_PANOPTIC = "This is not a panoptic json: for instances, name the format coco-instance."


@dataclass(frozen=True)
class SegmentsOfImage:
    """Reader of the segments of one image.

    Attributes:
        file: the JSON file, for messages.
        png: the PNG of the segments.
        image: the image file.
        size: (height, width). None reads it from the image.
        classes: the classes.
        packed: pickle of the image's `segments_info`: ids, category ids, crowds.
    """

    file: Path
    png: Path
    image: Path
    size: tuple[int, int] | None
    classes: ClassMap
    packed: bytes

    def __call__(self) -> PanopticAnnotation:
        """Read the segments. Those of dropped categories become void.

        A segment of the JSON without a pixel is kept, because it counts as missed.

        Raises:
            DataError: the PNG is missing, unreadable, differs in size, or has ids that the JSON does not list.
        """
        if not is_there(self.png):
            raise DataError(f"The mask {self.png} is missing.", hint="Copy it there, or leave its image out.")
        ids_HW = read_ids(self.png)
        check_size(self.image, self.size or image_size(self.image), ids_HW.shape, self.png)
        return annotation_of(ids_HW, pickle.loads(self.packed), self.classes, self.png, self.file.name)


def annotation_of(
    ids_HW: np.ndarray, rows: Iterable[tuple[Any, ...]], classes: ClassMap, png: PurePath, file: str
) -> PanopticAnnotation:
    """Return the segments of an image. Those of dropped categories become void.

    Args:
        ids_HW: ids of the PNG; changed in place.
        rows: (id, category id, crowd) of each segment, not validated yet.
        png: the PNG, for messages.
        file: name of the JSON, for messages.

    Raises:
        DataError: a row makes no sense or occurs twice, or the PNG has other ids.
    """
    where = f"{file}: a segment of {png.name}"
    rows = [_checked(row, where) for row in rows]
    labels = {row[0]: classes.number(row[1], where) for row in rows}
    if len(labels) < len(rows):
        repeated = next(key for key, count in Counter(row[0] for row in rows).items() if count > 1)
        raise DataError(f"{file} lists the segment {repeated} of {png.name} twice.")
    strange = set(values_in(ids_HW).tolist()) - {0, *labels}
    if strange:
        raise DataError(
            f"{png} has pixels of the segment {min(strange)}, which {file} does not list for it.",
            hint="Json and PNGs must be of one export: copy both again.",
        )
    dropped = [key for key, label in labels.items() if label is None]
    if dropped:
        ids_HW[np.isin(ids_HW, dropped)] = 0
    segments = [AnnotatedSegment(key, labels[key], bool(crowd)) for key, _, crowd in rows if labels[key] is not None]
    return PanopticAnnotation(ids_HW, segments)


def _checked(row: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    key, category_id, crowd = row
    if type(key) is type(category_id) is int and 0 < key <= schemas.LARGEST_ID and crowd in (None, 0, 1):
        return row
    said = schemas.read_as(schemas.SegmentRecord, {"id": key, "category_id": category_id, "iscrowd": crowd}, where)
    return said.id, said.category_id, said.iscrowd


def read_panoptic(coco: CocoFile, pngs: Path, candidates: list[Path], options: ReadOptions, task: Task) -> Parts:
    """Return the classes, a record per annotated image, notes, and what is passed over.

    Args:
        pngs: the folder of the PNGs.
        candidates: folders that may hold the images, best first. Empty if nobody will read the images.
        task: a task other than "panoptic" derives its annotations. Instances are the visible parts of things; unless
            `classes` names them, they are numbered without the stuff. Semantic labels are the classes of all segments,
            with crowds.

    Raises:
        DataError: the categories are broken, the classes are those of another table, or no image is annotated.
    """
    classes = map_classes(parse_categories(coco.categories, coco.path), options.classes, coco.path)
    if task == "instance" and options.classes is None:
        classes = classes.without_stuff()
    images = image_folder(coco.file_names(), candidates, coco.path) if candidates else coco.path.parent
    annotated = [key for key in coco.images if key in coco.annotations]
    records = tuple(_record(coco, key, pngs, images, classes, task) for key in annotated)
    missing = len(coco.images) - len(annotated)
    notes = (f"{missing} images of {coco.path.name} have no annotation and are left out",) if missing else ()
    if not records:
        raise DataError(f"{coco.path} has no annotated images.", hint="Export the data again.")
    passed = _passed_over(coco)
    return classes.categories, records, (*coco.notes, *classes.notes, *notes, *passed.notes), passed


def _passed_over(coco: CocoFile) -> PassedOver:
    passed = PassedOver()
    for key, image in coco.images.items():
        more = len(coco.annotations.get(key, ())) - 1
        if more > 0:
            passed.add("further annotations of one image", f"{coco.path.name}: {image['file_name']}", more)
    return passed


def _record(coco: CocoFile, key: int | str, pngs: Path, images: Path, classes: ClassMap, task: Task) -> Record:
    annotation, size = coco.annotations[key][0], coco.size(key)
    file_name = as_found(images, coco.images[key]["file_name"])
    png, rows = _segment_rows(annotation, coco.path)
    packed, image = pickle.dumps(rows, protocol=pickle.HIGHEST_PROTOCOL), images / file_name
    read = SegmentsOfImage(coco.path, pngs / as_found(pngs, png), image, size, classes, packed)
    read_annotation = read if task == "panoptic" else ReadAs(read, task, classes.categories)
    labels = classes.labels(category_id for _, category_id, crowd in rows if not is_crowd(crowd))
    if task == "instance":
        labels = tuple(label for label in labels if classes.categories[label].isthing)
    sizes = size or (None, None)
    return Record(record_name(file_name), image, read_annotation, *sizes, labels, image_id=key)


def _segment_rows(annotation: dict[str, Any], path: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """Return the file name of the PNG, and (id, category id, crowd) of each segment, not validated yet."""
    where = f"{path}: the annotation of image {schemas.shown(annotation['image_id'])}"
    said = schemas.read_as(schemas.PanopticRecord, annotation, where, hint=_NOT_PANOPTIC)
    return said.file_name, rows_of(said.segments_info, where)


def rows_of(segments_info: list[Any], where: str) -> list[tuple[Any, ...]]:
    """Return (id, category id, crowd) of each segment, not validated yet.

    Raises:
        DataError: a segment has no id.
    """
    if not all(isinstance(info, dict) and "id" in info for info in segments_info):
        raise DataError(f"{where} has segments_info without ids.", hint=_NOT_PANOPTIC)
    return [tuple(info.get(key) for key in _KEYS) for info in segments_info]


def png_folder(path: Path) -> Path:
    """Return the folder of a panoptic JSON's PNGs.

    It has the name of the JSON and lies beside it or one level up, or it is the JSON's own folder.

    Raises:
        DataError: none of these folders holds PNGs.
    """
    candidates = (path.with_suffix(""), path.parent.parent / path.stem, path.parent)
    folder_of_pngs = folder_at(*(folder for folder in candidates if any(folder.rglob("*.png"))))
    if folder_of_pngs is None:
        raise DataError(f"The PNGs of {path} are missing.", hint=f"Put them into {candidates[0]} or {candidates[1]}.")
    return folder_of_pngs


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    task = choose_task(options.task, ("panoptic", "instance", "semantic"), folder)
    path, found_notes = find_json(folder, KIND, split)
    if task == "instance" and path.with_name(path.name.replace(KIND, coco_instance.KIND)).is_file():
        return coco_instance.open_split(folder, split, options)  # its polygons also cover the hidden parts
    candidates = image_folders(folder, path, KIND, split)
    categories, records, notes, passed = read_panoptic(read_coco(path), png_folder(path), candidates, options, task)
    return DataSet(folder.name, "coco-panoptic", split, task, categories, records, (*found_notes, *notes), passed)


FORMAT = Format(
    layout="annotations/panoptic_{train,val}*.json and a folder of PNGs of that name",
    finds=lambda folder: has_json(folder, KIND),
    open=open_split,
)

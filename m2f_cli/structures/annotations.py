"""Annotations of images (segments, classes of pixels, objects), and conversion from one task to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from . import Task
from .categories import Categories
from .rle import encode_ids
from .run_lengths import renamed, values_in


@dataclass
class AnnotatedSegment:
    """Annotated region of a panoptic map.

    Attributes:
        id: value of its pixels in the map, from 1 on.
        label: class number.
        iscrowd: True for a group of objects that is not separated.
    """

    id: int
    label: int
    iscrowd: bool = False


@dataclass
class PanopticAnnotation:
    """Segments of an annotated image.

    Attributes:
        ids_HW: int32, ids of `segments`; 0 where nothing is annotated (void).
        segments: the annotated regions.
        source: file that it was read from, for official tools that read it themselves.
    """

    ids_HW: np.ndarray
    segments: list[AnnotatedSegment]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.ids_HW.shape


@dataclass
class SemanticAnnotation:
    """Classes of the pixels of an annotated image.

    Attributes:
        labels_HW: uint8, uint16 or int32, class numbers; `ignore` where nothing is annotated.
        ignore: value of pixels that do not count.
        source: file that it was read from.
    """

    labels_HW: np.ndarray
    ignore: int = 255
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.labels_HW.shape


@dataclass
class AnnotatedObject:
    """Annotated object.

    Attributes:
        label: class number.
        shape: polygons, each (points, 2) float x, y in pixels with the edges of pixels at whole numbers; or COCO run
            lengths. While an image is augmented, run lengths are a `data.transforms.geometry.Cutout`.
        iscrowd: True for a group of objects that is not separated.
        area: as annotated, in pixels; COCO's size ranges use it. None where the file does not say.
    """

    label: int
    shape: list[np.ndarray] | dict[str, Any]
    iscrowd: bool = False
    area: float | None = None


@dataclass
class InstanceAnnotation:
    """Objects of an annotated image, which may overlap.

    Attributes:
        size: (height, width) of the image in pixels.
        objects: the annotated objects.
        source: file that it was read from.
    """

    size: tuple[int, int]
    objects: list[AnnotatedObject]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)


Annotation: TypeAlias = PanopticAnnotation | SemanticAnnotation | InstanceAnnotation


# --- one task to another ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadAs:
    """Reader that returns a panoptic annotation as one of another task.

    Attributes:
        read: returns the panoptic annotation.
        task: "semantic" or "instance".
        categories: classes of the data set.
    """

    read: Callable[[], PanopticAnnotation]
    task: Task
    categories: Categories

    def __call__(self) -> Annotation:
        panoptic = self.read()
        derived: SemanticAnnotation | InstanceAnnotation
        if self.task == "semantic":
            derived = as_semantic(panoptic, len(self.categories))
        else:
            derived = as_instance(panoptic, self.categories)
        return dataclasses.replace(derived, source=panoptic.source)


def ignore_value(num_classes: int) -> int:
    """Return the value that means no class in a map of classes: 255, or 65535 where the classes need 16 bits."""
    return 255 if num_classes <= 255 else 65535


def as_semantic(panoptic: PanopticAnnotation, num_classes: int) -> SemanticAnnotation:
    """Return the class of every pixel, crowds included (docs/methods/published-behaviour.md#8-1)."""
    ignore = ignore_value(num_classes)
    labels = {segment.id: segment.label for segment in panoptic.segments}
    return SemanticAnnotation(renamed(panoptic.ids_HW, labels, ignore, np.min_scalar_type(ignore)), ignore)


def as_instance(panoptic: PanopticAnnotation, categories: Categories) -> InstanceAnnotation:
    """Return the visible parts of the things, as run lengths; crowds stay crowds."""
    things = [segment for segment in panoptic.segments if categories[segment.label].isthing]
    rles = encode_ids(panoptic.ids_HW, (segment.id for segment in things))
    objects = [AnnotatedObject(s.label, rle, s.iscrowd) for s, rle in zip(things, rles, strict=True)]
    return InstanceAnnotation(panoptic.size, objects)


def as_panoptic(semantic: SemanticAnnotation, separate: Collection[int] = ()) -> PanopticAnnotation:
    """Return one segment for each class that is present; ignored pixels become void.

    Args:
        separate: class numbers for which each connected region (8 neighbours) is a segment of its own.
    """
    ids_HW = np.zeros(semantic.size, dtype=np.int32)
    segments: list[AnnotatedSegment] = []
    whole: dict[int, int] = {}  # class number → segment id
    for label in values_in(semantic.labels_HW).tolist():
        if label == semantic.ignore:
            continue
        before, count = len(segments), 1
        if label in separate:
            inside_HW = semantic.labels_HW == label
            count_with_background, parts_HW = cv2.connectedComponents(inside_HW.view(np.uint8))
            count = count_with_background - 1
            ids_HW[inside_HW] = parts_HW[inside_HW] + before
        else:
            whole[label] = before + 1
        segments += [AnnotatedSegment(before + part, label) for part in range(1, count + 1)]
    return PanopticAnnotation(ids_HW + renamed(semantic.labels_HW, whole, 0, np.int32), segments)


def ids_to_rgb(ids_HW: np.ndarray) -> np.ndarray:
    """Return segment ids as COCO's colours, (H, W, 3) uint8: id = R + 256 G + 65536 B
    (docs/methods/published-behaviour.md#8-1)."""
    return np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16 & 255], axis=-1).astype(np.uint8)

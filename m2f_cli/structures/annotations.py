"""Truths of one task out of those of a richer one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from . import Task
from .categories import Categories
from .rle import encode_ids
from .run_lengths import values_in


@dataclass(frozen=True)
class ReadAs:
    """Reads a panoptic truth and gives it as one of another task."""

    read: Callable[[], PanopticTruth]
    task: Task
    categories: Categories

    def __call__(self) -> Truth:
        truth = self.read()
        if self.task == "semantic":
            derived = semantic_truth(truth, len(self.categories))
        else:
            derived = instance_truth(truth, self.categories)
        return dataclasses.replace(derived, source=truth.source)


def semantic_truth(truth: PanopticTruth, num_classes: int) -> SemanticTruth:
    """The class of every pixel, crowds included (docs/methods/published-behaviour.md#8-1); 255 (65535 from 256 classes
    on) where there is none."""
    ignore = 255 if num_classes <= 255 else 65535
    ids = values_in(truth.ids_HW)
    labels = {segment.id: segment.label for segment in truth.segments}
    of_ids = np.array([labels.get(int(key), ignore) for key in ids], dtype=np.uint8 if ignore == 255 else np.uint16)
    return SemanticTruth(of_ids[np.searchsorted(ids, truth.ids_HW)], ignore)


def instance_truth(truth: PanopticTruth, categories: Categories) -> InstanceTruth:
    """The visible parts of the things, as run lengths; crowds stay crowds."""
    things = [segment for segment in truth.segments if categories[segment.label].isthing]
    rles = encode_ids(truth.ids_HW, (segment.id for segment in things))
    objects = [TrueObject(s.label, rle, s.iscrowd) for s, rle in zip(things, rles, strict=True)]
    return InstanceTruth(truth.size, objects)


@dataclass
class TrueSegment:
    """One annotated region of a panoptic map. `label` is a class number; a crowd is a group that is not separated."""

    id: int
    label: int
    iscrowd: bool = False


@dataclass
class PanopticTruth:
    """An annotated picture: ids_HW (int32) holds ids of `segments`, 0 where nothing is annotated (void). `source` is
    the file that it was read from, for official tools that read it themselves."""

    ids_HW: np.ndarray
    segments: list[TrueSegment]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.ids_HW.shape


@dataclass
class SemanticTruth:
    """An annotated picture: labels_HW (uint8, uint16 or int32) holds class numbers, `ignore` where nothing counts.
    `source` is the file that it was read from."""

    labels_HW: np.ndarray
    ignore: int = 255
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.labels_HW.shape


@dataclass
class TrueObject:
    """One annotated object: polygons (each (points, 2) float x, y in pixels, edges at whole numbers) or a COCO RLE.

    While a picture is augmented, the mask of an RLE travels as a `data.geometry.Cutout`.
    """

    label: int
    shape: list[np.ndarray] | dict[str, Any]
    iscrowd: bool = False
    area: float | None = None  # as annotated; COCO's size ranges use it


@dataclass
class InstanceTruth:
    """An annotated picture: objects that may overlap. `size` is (height, width), `source` the file of a picture that
    the objects were read from."""

    size: tuple[int, int]
    objects: list[TrueObject]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)


Truth: TypeAlias = PanopticTruth | SemanticTruth | InstanceTruth

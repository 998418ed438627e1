"""Truths of one task out of those of a richer one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...types import Categories, InstanceTruth, PanopticTruth, SemanticTruth, Task, TrueObject, Truth
from .files import values_in
from .shapes import encode_ids


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
    """The class of every pixel, crowds included (facts 8.1); 255 (65535 from 256 classes on) where there is none."""
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

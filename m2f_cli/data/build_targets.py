"""Conversion of annotations to training targets (docs/methods/published-behaviour.md#2-2, "Target construction").

A class number is a position in the data set's categories, in annotations and targets alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..structures import Task
from ..structures.annotations import Annotation, InstanceAnnotation, SemanticAnnotation, as_semantic
from ..structures.categories import Categories
from ..structures.run_lengths import renamed, values_in
from ..structures.targets import Target
from .transforms.geometry import mask_of

TRAINS: dict[Task, tuple[Task, ...]] = {  # tasks that each kind of annotation can train
    "panoptic": ("panoptic", "instance", "semantic"),
    "instance": ("instance",),
    "semantic": ("semantic",),
}


def require_trains(annotated: Task, task: Task) -> None:
    """Refuse annotations that cannot train a task.

    Raises:
        ConfigError: the annotations do not suffice. Objects alone, for example, do not describe the background that a
            panoptic model needs.
    """
    if task not in TRAINS[annotated]:
        enough = [kind for kind, tasks in TRAINS.items() if task in tasks]
        raise ConfigError(
            f"{annotated.capitalize()} annotations cannot train a {task} model.",
            hint=f"Use {' or '.join(enough)} annotations, or train with task={annotated}.",
        )


def to_target(annotation: Annotation, task: Task, categories: Categories) -> Target:
    """Return the target of one image.

    semantic: one target for each class that is present. In a panoptic annotation this includes crowds.
    panoptic: one target for each segment that is not a crowd.
    instance: one target for each object that is not a crowd. Of a panoptic annotation, only the things count.

    Segments and objects without any pixel are kept with an empty mask. Only an instance annotation gives masks, which
    may overlap. All other annotations give an id map.

    Raises:
        ConfigError: the annotation cannot train the task.
        DataError: the annotation has a class number that the categories do not have.
    """
    if isinstance(annotation, InstanceAnnotation):
        require_trains("instance", task)
        return _from_objects(annotation, len(categories))
    if isinstance(annotation, SemanticAnnotation):
        require_trains("semantic", task)
        return _from_labels(annotation, len(categories))
    _check_labels([segment.label for segment in annotation.segments], len(categories))
    if task == "semantic":
        return _from_labels(as_semantic(annotation, len(categories)), len(categories))
    kept = [s for s in annotation.segments if not s.iscrowd and (task == "panoptic" or categories[s.label].isthing)]
    return _id_map(annotation.ids_HW, [s.id for s in kept], [s.label for s in kept])


def _from_labels(annotation: SemanticAnnotation, count: int) -> Target:
    present = [label for label in values_in(annotation.labels_HW).tolist() if label != annotation.ignore]
    _check_labels(present, count)
    return _id_map(annotation.labels_HW, present, present)


def _from_objects(annotation: InstanceAnnotation, count: int) -> Target:
    kept = [item for item in annotation.objects if not item.iscrowd]
    _check_labels([item.label for item in kept], count)
    masks_NHW = np.zeros((len(kept), *annotation.size), dtype=np.uint8)
    for mask_HW, item in zip(masks_NHW, kept, strict=True):
        mask_HW[:] = mask_of(item, annotation.size)
    return Target(_labels_tensor([item.label for item in kept]), masks_NHW=torch.from_numpy(masks_NHW))


def _id_map(plane_HW: np.ndarray, values: list[int], labels: list[int]) -> Target:
    """Return an id map with the targets 0, 1, … at the pixels of `plane_HW` that equal the values of the list.

    The map is int16 if the number of targets fits, else int32. Pixels without a target are -1.
    """
    dtype = np.int16 if len(values) < np.iinfo(np.int16).max else np.int32
    owner_HW = renamed(plane_HW, {value: number for number, value in enumerate(values)}, -1, dtype)
    return Target(_labels_tensor(labels), owner_HW=torch.from_numpy(owner_HW))


def _labels_tensor(labels: list[int]) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


def _check_labels(labels: list[int], count: int) -> None:
    wrong = sorted({label for label in labels if not 0 <= label < count})
    if wrong:
        raise DataError(
            f"The annotation has the class number {wrong[0]}, but there are {count} classes (0 to {count - 1}).",
            hint="Check the class table, and which value marks pixels without a class (ignore_index).",
        )

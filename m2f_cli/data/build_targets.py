"""From the truth about a picture to what a network is trained on (docs/methods/published-behaviour.md#2-2, "Target
construction").

A class number is a position in the data set's categories, in truths and targets alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..structures import Task
from ..structures.annotations import InstanceTruth, PanopticTruth, SemanticTruth, Truth
from ..structures.categories import Categories
from ..structures.targets import Target
from .transforms.geometry import mask_of

TRAINS: dict[Task, tuple[Task, ...]] = {  # what annotations of a kind are enough for
    "panoptic": ("panoptic", "instance", "semantic"),
    "instance": ("instance",),
    "semantic": ("semantic",),
}


def require_trains(annotated: Task, task: Task) -> None:
    """Refuse annotations that cannot train a task.

    Raises:
        ConfigError: for example, objects alone say nothing of the background that a panoptic model needs.
    """
    if task not in TRAINS[annotated]:
        enough = [kind for kind, tasks in TRAINS.items() if task in tasks]
        raise ConfigError(
            f"{annotated.capitalize()} annotations cannot train a {task} model.",
            hint=f"Use {' or '.join(enough)} annotations, or train with task={annotated}.",
        )


def to_target(truth: Truth, task: Task, categories: Categories) -> Target:
    """The target of one picture.

    semantic: one target for each class present; of a panoptic truth that includes crowds. panoptic: one for each
    segment that is no crowd. instance: one for each object that is no crowd; of a panoptic truth, those of things.
    Segments and objects without any pixel are kept: their masks are empty. Only an instance truth gives masks, which
    may overlap; everything else is an id map.

    Raises:
        ConfigError: the truth cannot train the task.
        DataError: a class number that the categories do not have.
    """
    if isinstance(truth, InstanceTruth):
        require_trains("instance", task)
        return _from_objects(truth, len(categories))
    if isinstance(truth, SemanticTruth):
        require_trains("semantic", task)
        return _from_labels(truth, len(categories))
    if task == "semantic":
        return _from_labels(to_semantic(truth), len(categories))
    _check_labels([segment.label for segment in truth.segments], len(categories))
    kept = [s for s in truth.segments if not s.iscrowd and (task == "panoptic" or categories[s.label].isthing)]
    return _id_map(truth.ids_HW, [s.id for s in kept], [s.label for s in kept])


def to_semantic(truth: PanopticTruth) -> SemanticTruth:
    """The class of every pixel; void, and ids that no segment has, are -1: ignored."""
    owners_HW = _positions(truth.ids_HW, [segment.id for segment in truth.segments])
    labels = np.array([segment.label for segment in truth.segments] + [-1], dtype=np.int32)
    return SemanticTruth(labels[owners_HW], ignore=-1)


def _from_labels(truth: SemanticTruth, count: int) -> Target:
    present = [label for label in _values(truth.labels_HW) if label != truth.ignore]
    _check_labels(present, count)
    return _id_map(truth.labels_HW, present, present)


def _values(plane_HW: np.ndarray) -> list[int]:
    """The values in a plane, ascending."""
    flat = plane_HW.ravel()
    return np.unique(flat[_run_starts(flat)]).tolist()


def _run_starts(flat: np.ndarray) -> np.ndarray:
    """Where runs of one value begin: there are some hundred times fewer of them than pixels."""
    return np.flatnonzero(np.append(True, flat[1:] != flat[:-1])[: flat.size])


def _from_objects(truth: InstanceTruth, count: int) -> Target:
    kept = [item for item in truth.objects if not item.iscrowd]
    _check_labels([item.label for item in kept], count)
    masks_NHW = np.zeros((len(kept), *truth.size), dtype=np.uint8)
    for mask_HW, item in zip(masks_NHW, kept, strict=True):
        mask_HW[:] = mask_of(item, truth.size)
    return Target(_labels_tensor([item.label for item in kept]), masks_NHW=torch.from_numpy(masks_NHW))


def _id_map(plane_HW: np.ndarray, values: list[int], labels: list[int]) -> Target:
    """Targets 0, 1, … are where the plane has the values of the list."""
    owners_HW = _positions(plane_HW, values)
    return Target(_labels_tensor(labels), owner_HW=torch.from_numpy(owners_HW))


def _positions(plane_HW: np.ndarray, values: list[int]) -> np.ndarray:
    """Where in the list each pixel's value stands, -1 where it does not: int16, or int32 for 32767 values or more."""
    dtype = np.int16 if len(values) < np.iinfo(np.int16).max else np.int32
    order = np.argsort(values, kind="stable")
    ascending = np.array(values, dtype=np.int64)[order]
    flat = plane_HW.ravel()
    starts = _run_starts(flat)
    runs = flat[starts].astype(np.int64)
    places = np.searchsorted(ascending, runs)
    found = np.append(ascending, -1)[places] == runs
    positions = np.where(found, np.append(order, -1)[places], -1).astype(dtype)
    return np.repeat(positions, np.diff(np.append(starts, flat.size))).reshape(plane_HW.shape)


def _labels_tensor(labels: list[int]) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


def _check_labels(labels: list[int], count: int) -> None:
    wrong = sorted({label for label in labels if not 0 <= label < count})
    if wrong:
        raise DataError(
            f"The annotation has the class number {wrong[0]}, but there are {count} classes (0 to {count - 1}).",
            hint="Check the class table, and which value marks pixels without a class (ignore_index).",
        )

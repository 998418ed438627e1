"""Annotated images as training samples: read, augmented, turned into targets.

The randomness of a sample depends only on the seed, the position in the stream of samples and the index of the record.
It does not depend on the worker, the process or the order of execution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..structures import Task
from ..structures.annotations import InstanceAnnotation
from ..structures.images import image_size
from ..structures.targets import Target
from .build_targets import require_trains, to_target
from .records import DataSet, Record, labels_of
from .transforms import Sample, Transform, augment
from .transforms.geometry import Cutout, mask_of

OnError = Literal["raise", "skip"]
MOST_SKIPPED = 100  # in a row; more suggests a systematic error instead of single damaged files


class SampleIndex(NamedTuple):
    """Sample of the endless stream, as two numbers.

    Attributes:
        position: the sample's position in the stream of all processes together.
        index: the number of its record.
    """

    position: int
    index: int


@dataclass
class TrainingSample:
    """Augmented image with its target.

    Attributes:
        image_CHW: uint8, RGB.
        target: the training target, in the size of the image.
        name: the name of the record.
        index: the number of the record that the sample was made from.
        canvas: least (height, width) of its batch.
        skipped: messages about the unusable records that this sample replaces.
    """

    image_CHW: Tensor
    target: Target
    name: str
    index: int
    canvas: tuple[int, int] = (0, 0)
    skipped: tuple[str, ...] = ()


class TrainingSet(torch.utils.data.Dataset):
    """Data set as training samples, indexed by `SampleIndex`.

    Args:
        steps: the steps of the augmentation.
        task: the task to train, for which the annotations have to be sufficient.
        seed: seed of the augmentation.
        tries: augmentations of an image, at most, until something to train on is left in it.
        on_error: "raise" stops at a record that cannot be read. "skip" takes the next readable one and reports it.

    Raises:
        ConfigError: the annotations cannot train the task.
        DataError: there are no records.
    """

    def __init__(
        self,
        data: DataSet,
        steps: Sequence[Transform],
        task: Task,
        *,
        seed: int = 0,
        tries: int = 1,
        on_error: OnError = "raise",
    ):
        require_trains(data.task, task)
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error = {on_error!r} should be raise or skip.")
        if not data.records:
            raise DataError(f"The {data.split} split of {data.name} has no images to train on.")
        self.data, self.steps, self.task = data, tuple(steps), task
        self.seed, self.tries, self.on_error = seed, tries, on_error

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, draw: SampleIndex) -> TrainingSample:
        """Return the training sample of a draw.

        Raises:
            DataError: the record cannot be read (on_error="raise"), or 100 in a row cannot.
        """
        skipped: list[str] = []
        for offset in range(min(MOST_SKIPPED, len(self))):
            index = (draw.index + offset) % len(self)
            try:
                sample = self._sample(SampleIndex(draw.position, index))
            except DataError as error:
                if self.on_error == "raise":
                    raise
                skipped.append(str(error))
            else:
                return dataclasses.replace(sample, skipped=tuple(skipped))
        raise DataError(f"{len(skipped)} records in a row cannot be used. The first: {skipped[0]}")

    def _sample(self, draw: SampleIndex) -> TrainingSample:
        record = self.data.records[draw.index]
        rng = np.random.default_rng((self.seed, *draw))
        whole = read(record)
        for _ in range(self.tries):
            augmented = augment(whole, self.steps, rng)
            try:
                target = to_target(augmented.annotation, self.task, self.data.categories)
            except DataError as error:
                raise DataError(f"{record.name}: {error.message}", hint=error.hint) from error
            if len(target):
                break
        image_CHW = torch.from_numpy(augmented.image_HW3.transpose(2, 0, 1).copy())
        return TrainingSample(image_CHW, target, record.name, draw.index, augmented.canvas)


def read(record: Record) -> Sample:
    """Read the image of a record and its annotation.

    Crowds of objects are left out, because nothing is trained on them.

    Raises:
        DataError: the record is unreadable, or its annotation and image differ in size. The message names the record.
    """
    try:
        image_HW3, annotation = record.read_image(), record.read_annotation()
    except DataError as error:
        if record.name in error.message:
            raise
        raise DataError(f"{record.name}: {error.message}", hint=error.hint) from error
    if tuple(annotation.size) != image_HW3.shape[:2]:
        sizes = f"{annotation.size[0]} x {annotation.size[1]}", f"{image_HW3.shape[0]} x {image_HW3.shape[1]}"
        raise DataError(f"{record.name}: the annotation is {sizes[0]} pixels, the image {sizes[1]}.")
    if isinstance(annotation, InstanceAnnotation):
        annotation = without_crowds(annotation)
    return Sample(image_HW3, annotation)


def without_crowds(annotation: InstanceAnnotation) -> InstanceAnnotation:
    """Leave out crowds, and decode run lengths once instead of at every step."""
    objects = [
        item
        if isinstance(item.shape, list)
        else dataclasses.replace(item, shape=Cutout.of(mask_of(item, annotation.size)))
        for item in annotation.objects
        if not item.iscrowd
    ]
    return InstanceAnnotation(annotation.size, objects)


# --- what is known of a record without its image --------------------------------------------------------------------


def is_wide(record: Record) -> bool:
    """Return True if the stored image is wider than high. The file's header is read if the record lacks the size."""
    if record.height is not None and record.width is not None:
        return record.width > record.height
    height, width = record.read_image().shape[:2] if record.image is None else image_size(record.image)
    return width > height


def drop_empty(data: DataSet, task: Task) -> DataSet:
    """Leave out the images that have nothing to train the task on. For instances only things count."""
    trained = {label for label, category in enumerate(data.categories) if category.isthing or task != "instance"}
    records = [record for record in data.records if trained.intersection(labels_of(record))]
    return dataclasses.replace(data, records=records)

"""Data sets that a run is trained and evaluated on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import Component, Config
from ..data.formats.base import NoTask
from ..data.open_dataset import open_data
from ..data.records import DataSet, Record
from ..data.synthetic.dataset import synthetic_dataset
from ..errors import ConfigError, DataError
from ..structures.annotations import InstanceAnnotation

Splits = tuple[DataSet, DataSet | None]  # data sets for training and for evaluation


def open_splits(settings: Config, folder: Path | str | None, val_limit: int | None, notes: list[str]) -> Splits:
    """Return the data sets for training and evaluation. Remarks for people go to `notes`.

    Raises:
        M2FError: see `open_split` and `val_split`.
    """
    return open_split(settings, folder, "train"), val_split(settings, folder, val_limit, notes)


def with_task_of(settings: Config, error: NoTask, notes: list[str]) -> Config:
    """Return the configuration for a task of the data, which does not have the task of the preset.

    Mask classification is trained alike for all tasks (Mask2Former, section 3). The task decides which annotation is
    read and which figure is measured. A crop that limits the share of a class needs a class for every pixel, so
    instances have no such limit.

    Raises:
        NoTask: the network is made for one task alone. It is `error` itself.
    """
    if settings.train is None or settings.train.loss.masks == "per_pixel":
        raise error
    task = error.supported[0]
    notes.append(
        f"The preset {settings.name} is for {settings.task} segmentation and these annotations are for "
        f"{' or '.join(error.supported)} segmentation: this run's task is {task}."
    )
    augment = settings.train.augment
    if task == "instance":
        limit = {"category_max_area": 1.0}
        augment = tuple(
            Component(name=each.name, **{**each.options, **limit}) if limit.keys() & each.options else each
            for each in augment
        )
    train = settings.train.model_copy(update={"augment": augment})
    test = settings.test.model_copy(update={"tasks": (task,)})
    return settings.model_copy(update={"task": task, "train": train, "test": test})


def open_split(settings: Config, folder: Path | str | None, split: str) -> DataSet:
    """Return a split of the data that a run uses.

    For instances the classes are the things alone. A class without annotations would be trained to be absent, and would
    count as a class in every mean.

    Raises:
        ConfigError: a preset without data of its own needs a folder.
        DataError: the folder cannot be used, or has no things to train instances on.
    """
    data = _open(settings, folder, split)
    return things_only(data) if settings.task == "instance" else data


def _open(settings: Config, folder: Path | str | None, split: str) -> DataSet:
    if folder is not None:
        data = settings.data
        return open_data(folder, split, task=settings.task, ignore_index=data.ignore_index, label_map=data.label_map)
    scenes = settings.data.scenes
    if scenes is not None:
        return synthetic_dataset(
            split,
            getattr(scenes, split),
            size=scenes.size,
            objects=scenes.objects,
            difficulty=scenes.difficulty,
            task=settings.task,
        )
    raise ConfigError(
        f"The preset {settings.name} trains on {settings.data.dataset}, and m2f does not know where that is.",
        hint="Pass --data DIR.",
    )


def things_only(data: DataSet) -> DataSet:
    """Return a data set of instances without its stuff classes, with the things renumbered.

    Raises:
        DataError: there are no things.
    """
    numbers = {label: new for new, label in enumerate(i for i, c in enumerate(data.categories) if c.isthing)}
    if len(numbers) == len(data.categories):
        return data
    if not numbers:
        raise DataError(
            f"None of the {len(data.categories)} classes of {data.name} is a thing: there are no instances.",
            hint="Train the task semantic, or mark the things in the annotations.",
        )
    records = [_of_things(record, numbers) for record in data.records]
    return dataclasses.replace(data, categories=tuple(data.categories[old] for old in numbers), records=records)


def _of_things(record: Record, numbers: Mapping[int, int]) -> Record:
    labels = record.labels and tuple(numbers[label] for label in record.labels if label in numbers)
    return dataclasses.replace(record, labels=labels, read_annotation=ReadThings(record.read_annotation, numbers))


@dataclass(frozen=True)
class ReadThings:
    """Reader of the objects of an image that belong to certain classes, with new class numbers.

    Attributes:
        read: reads the annotation of the image.
        numbers: old to new number of each class. Objects of other classes are dropped.
    """

    read: Callable[[], InstanceAnnotation]
    numbers: Mapping[int, int]

    def __call__(self) -> InstanceAnnotation:
        annotation = self.read()
        kept = (item for item in annotation.objects if item.label in self.numbers)
        return dataclasses.replace(
            annotation, objects=[dataclasses.replace(item, label=self.numbers[item.label]) for item in kept]
        )


def val_split(settings: Config, folder: Path | str | None, limit: int | None, notes: list[str]) -> DataSet | None:
    """Return the images to evaluate on, or None with a note if the data have none."""
    try:
        data = open_split(settings, folder, "val")
    except DataError as error:
        notes.append(f"Nothing is evaluated while training: {error.message}")
        return None
    if limit is not None and len(data.records) > limit:
        notes.append(f"Evaluation uses the first {limit} of {len(data.records)} images.")
        data = dataclasses.replace(data, records=data.records[:limit])
    return data


def same_classes(train_data: DataSet, val_data: DataSet | None) -> None:
    """Check that both splits have the same classes.

    Raises:
        DataError: they differ.
    """
    if val_data is None or [c.name for c in val_data.categories] == [c.name for c in train_data.categories]:
        return
    raise DataError(
        f"The train split has {len(train_data.categories)} classes and the val split {len(val_data.categories)}, or "
        "other names.",
        hint="Both splits need the same class list.",
    )


# --- what a run remembers of its data ---------------------------------------------------------------------------------


def identity(data: DataSet) -> dict[str, Any]:
    """Return plain values that distinguish the data of a run from other data.

    The fingerprint covers the list of records, in order, as far as it is known without reading any image.
    """
    fingerprint = hashlib.blake2b(digest_size=8)
    for record in data.records:
        labels = record.labels if record.labels is None else tuple(map(int, record.labels))
        size = tuple(None if edge is None else int(edge) for edge in (record.height, record.width))
        fingerprint.update(repr((record.name, size, labels)).encode(errors="surrogatepass"))
    return {
        "format": data.format,
        "task": data.task,
        "classes": [category.name for category in data.categories],
        "things": [category.isthing for category in data.categories],
        "images": len(data.records),
        "fingerprint": fingerprint.hexdigest(),
    }


def refuse_other_data(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Refuse to resume a run on other data than it was started with.

    Args:
        before: the `identity` that the run wrote.
        now: the `identity` of the present data.

    Raises:
        ConfigError: the data differ (the message names the difference), or `before` is no identity.
    """
    if not _is_like(before, now):
        raise ConfigError(
            f"What {run} says of the data it was trained on makes no sense: {repr(before)[:100]}.",
            hint="Its env.json or checkpoints/resume.pt is damaged; copy the run again.",
        )
    difference = _difference(before, now)
    if difference is not None:
        raise ConfigError(
            f"The data is not what {run} was trained on: {difference}.",
            hint=f"To train its weights on this data: m2f train --init {run} --data DIR --out NEW_RUN.",
        )


def _is_like(before: Any, now: Mapping[str, Any]) -> bool:
    """Return True if a value from a file has the keys and types of an `identity`."""
    return isinstance(before, dict) and all(
        type(before.get(key)) is type(value)
        and (not isinstance(value, list) or {*map(type, before[key])} <= {*map(type, value)})
        for key, value in now.items()
    )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for key, what in (("format", "the format"), ("task", "the task")):
        if before[key] != now[key]:
            return f"{what} was {before[key]} and is {now[key]} now"
    old, new = before["classes"], now["classes"]
    if len(old) != len(new):
        return f"it had {len(old)} classes and has {len(new)} now"
    for number, (was, now_is) in enumerate(zip(old, new, strict=True)):
        if was != now_is:
            return f"class {number} was {was!r} and is {now_is!r} now"
    if before["things"] != now["things"]:
        return "other classes are countable"
    if before["images"] != now["images"]:
        return f"it had {before['images']} images to train on and has {now['images']} now"
    if before["fingerprint"] != now["fingerprint"]:
        return "images have other names, sizes, classes or another order"
    return None

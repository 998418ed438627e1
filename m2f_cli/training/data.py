"""What a run is trained and evaluated on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config import Config
from ..data.detect import open_data
from ..data.records import DataSet
from ..data.synthetic_data import synthetic_dataset
from ..errors import ConfigError, DataError


def open_split(settings: Config, folder: Path | None, split: str) -> DataSet:
    """A split of the data that a run uses.

    Raises:
        ConfigError: a preset without data of its own needs a folder. DataError: the folder cannot be used.
    """
    if folder is not None:
        data = settings.data
        return open_data(
            folder, split, task=settings.task, ignore_index=data.ignore_index, label_map=data.label_map
        )
    scenes = settings.data.scenes
    if scenes is not None:
        return synthetic_dataset(
            split, getattr(scenes, split), size=scenes.size, objects=scenes.objects, difficulty=scenes.difficulty,
            task=settings.task,
        )
    raise ConfigError(
        f"The preset {settings.name} trains on {settings.data.dataset}, and m2f does not know where that is.",
        hint="Pass --data DIR.",
    )


def val_split(settings: Config, folder: Path | None, limit: int | None, notes: list[str]) -> DataSet | None:
    """The pictures to evaluate on; None, with a note, where the data have none."""
    try:
        data = open_split(settings, folder, "val")
    except DataError as error:
        notes.append(f"Nothing is evaluated while training: {error.message}")
        return None
    if limit is not None and len(data.records) > limit:
        notes.append(f"Evaluation uses the first {limit} of {len(data.records)} pictures.")
        data = dataclasses.replace(data, records=data.records[:limit])
    return data


def same_classes(train_data: DataSet, val_data: DataSet | None) -> None:
    """
    Raises:
        DataError: the splits have other classes.
    """
    if val_data is None or [c.name for c in val_data.categories] == [c.name for c in train_data.categories]:
        return
    raise DataError(
        f"The train split has {len(train_data.categories)} classes and the val split {len(val_data.categories)}, or "
        "other names.",
        hint="Both splits need the same class list.",
    )

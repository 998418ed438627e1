"""Data set that a model is evaluated on, with the classes of the model and the annotations of each task."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .. import plugins
from ..config.run_folder import ENVIRONMENT
from ..config.schema import Config
from ..data.open_dataset import open_data
from ..data.records import DataSet, Record
from ..data.synthetic.dataset import synthetic_dataset
from ..errors import ConfigError, DataError
from ..inference.load_network import fold_name
from ..runtime import documents
from ..storage.uris import place_of
from ..structures import Task
from ..structures.annotations import ReadAs
from ..structures.categories import Categories, class_tables, load_categories
from .evaluate import Annotations

LAYOUT = {  # below $DETECTRON2_DATASETS (docs/methods/published-behaviour.md#8)
    "coco": "coco",
    "ade20k": "ADEChallengeData2016",
    "cityscapes": "cityscapes",
    "mapillary-vistas": "mapillary_vistas",
    "coco-stuff-10k": "coco/coco_stuff_10k",
    "ade20k-full": "ADE20K_2021_17_01",
    "mass13k": "mass13k",
    "nuinsseg": "nuinsseg",
}
FULL_SPLITS = {  # images (docs/methods/published-behaviour.md#8)
    ("coco", "val"): 5000,
    ("ade20k", "val"): 2000,
    ("cityscapes", "val"): 500,
    ("mapillary-vistas", "val"): 2000,
    ("coco-stuff-10k", "val"): 1000,
    ("ade20k-full", "val"): 2000,
}
OWN_CLASS_TABLES = ("ade20k", "cityscapes", "mapillary")  # formats that bring their classes
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")
SHOWN = 3


@dataclass(frozen=True)
class EvalData:
    """Annotated images for a model.

    Attributes:
        name: the name of the data set.
        format: the format of the data set.
        split: the split of the data set.
        folder: the folder of the data set; None for generated images.
        tasks: the tasks that the annotations are good for.
        records: the images.
        full: number of images of the published split, where the data set is a known one.
        notes: remarks about the annotations, for people.
    """

    name: str
    format: str
    split: str
    folder: Path | str | None
    tasks: tuple[Task, ...]
    records: Sequence[Record]
    full: int | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)


def folder_of(config: Config, model: str | Path | None, data: Path | str | None) -> Path | str | None:
    """Return the folder of the annotated images; None stands for the generated images of the configuration.

    The folder is `data`, else the data that the run `model` was trained on. Else it is the known data set below
    $DETECTRON2_DATASETS (./datasets where that is not set).

    Raises:
        ConfigError: neither the arguments nor the configuration name a folder.
        DataError: the known data set is not there; the message says how to get it.
    """
    if data is not None:
        return data
    run = _options_of_run(model)
    if run is not None and run.get("data"):
        return place_of(run["data"])
    if config.data.scenes is not None:
        return None
    hint = "Pass --data DIR."
    if config.data.dataset not in LAYOUT:
        raise ConfigError(f"The model {config.name} does not say where images to evaluate it on are.", hint=hint)
    root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")
    place = LAYOUT[config.data.dataset]
    folder = root / place
    if not folder.is_dir():
        raise DataError(
            f"{config.name} is evaluated on {config.data.dataset}, and there is no {folder}.",
            hint=f"Pass --data DIR, or set DETECTRON2_DATASETS to the folder that holds {place}/.{how_to_get(place)}",
        )
    return folder


def how_to_get(place: str) -> str:
    """Return a sentence that names the command that prepares the data set of the folder `place`, or ""."""
    names = [name for name in plugins.names("preparers") if plugins.get("preparers", name).folder == place]
    return f" m2f data prepare {names[0]} says where to get it and prepares it." if names else ""


def _options_of_run(model: str | Path | None) -> dict[str, Any] | None:
    """Return the options of the training run whose folder or checkpoint `model` is; None if it is no run."""
    folder = Path(model or "")
    files = [parent / ENVIRONMENT for parent in (folder, folder.parent.parent)]
    path = next((file for file in files if file.is_file()), None)
    if model is None or path is None:
        return None
    try:
        tree = documents.read_json(path, error=ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged: {error.message}", hint="Pass --data DIR.") from error
    options = tree.get("options") if isinstance(tree, dict) else None
    if not isinstance(options, dict) or not isinstance(options.get("data"), str | None):
        raise ConfigError(f"{path} is damaged.", hint="Pass --data DIR.")
    return options


def open_for(
    config: Config,
    categories: Categories,
    folder: Path | str | None,
    split: str,
    tasks: Sequence[Task],
    *,
    every: bool = True,
) -> EvalData:
    """Open a split for the results of some tasks, in the classes of a model.

    A data set may have annotations of its own for a task, such as COCO's objects beside its segments. Results of that
    task are compared with those, as published; otherwise with the panoptic annotation.

    Args:
        config: the configuration of the model.
        categories: the classes of the model.
        folder: the folder from `folder_of`.
        split: the name of the split.
        tasks: the tasks of the results.
        every: True if the annotations must be good for all of `tasks`; False if for one of them.

    Raises:
        DataError: the data are unusable, have other classes than the model, or no annotations for a task.
        ConfigError: the configuration has no generated images.
    """
    ordered = [task for task in TASKS if task in tasks]
    if folder is None:
        return _generated(config, categories, split, ordered)
    sets: dict[Task, DataSet] = {}
    missing: dict[Task, DataError] = {}
    for task in ordered:
        try:
            sets[task] = _open_one(config, categories, folder, split, task)
        except DataError as error:
            missing[task] = error
    if missing and (not sets or (every and "panoptic" not in sets)):
        raise next(iter(missing.values()))
    joined = _joined(sets, folder, FULL_SPLITS.get((config.data.dataset, split)))
    return _with_missing(joined, missing)


def _generated(config: Config, categories: Categories, split: str, tasks: Sequence[Task]) -> EvalData:
    scenes = config.data.scenes
    if scenes is None:
        raise ConfigError(f"The configuration {config.name} has no generated images.", hint="Pass --data DIR.")
    count = scenes.train if split == "train" else scenes.val
    data = synthetic_dataset(
        split,
        count,
        size=scenes.size,
        objects=scenes.objects,
        difficulty=scenes.difficulty,
        task=tasks[0] if len(tasks) == 1 else "panoptic",
    )
    check_classes(categories, data.categories, "the generated images")
    return EvalData(data.name, data.format, split, None, tuple(tasks), data.records)


def _open_one(config: Config, categories: Categories, folder: Path | str, split: str, task: Task) -> DataSet:
    """Open a split for one task, numbered by the model's classes."""
    how = {"task": task, "ignore_index": config.data.ignore_index, "label_map": config.data.label_map}
    data = open_data(folder, split, **how)
    if _names(data.categories) == _names(categories):
        return data
    table = _table(config, categories)
    data_names, model_names = set(_names(data.categories)), set(_names(categories))
    is_known = table is not None and data.format in OWN_CLASS_TABLES
    is_part = data.format != "label-maps" and (data_names <= model_names or model_names <= data_names)
    if not (is_known or is_part):
        check_classes(categories, data.categories, str(folder))
    if table is not None:
        return open_data(folder, split, classes=table, **how)
    with _written(categories) as path:
        return open_data(folder, split, classes=path, **how)


def _table(config: Config, categories: Categories) -> str | None:
    """Return the name of the shipped table of a model's classes; None if there is none."""
    table = config.data.classes
    is_shipped = table in class_tables() and _names(load_categories(table)) == _names(categories)
    return table if is_shipped else None


@contextmanager
def _written(categories: Categories) -> Iterator[Path]:
    """Write the classes of a model to a temporary file, since readers renumber by a file."""
    with tempfile.TemporaryDirectory(prefix="m2f-classes-") as folder:
        path = Path(folder) / "classes.yaml"
        tree = {"classes": [category.to_dict() for category in categories]}
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        yield path


def check_classes(model: Categories, data: Categories, where: str) -> None:
    """Refuse data whose classes are not those of the model, in this order.

    Raises:
        DataError: the classes differ; the message says where first.
    """
    model_names, data_names = _names(model), _names(data)
    if model_names == data_names:
        return
    differing = [i for i in range(min(len(model), len(data))) if model_names[i] != data_names[i]]
    pairs = [f"class {i} is {model[i].name!r} in the model and {data[i].name!r} in the data" for i in differing]
    shown = "; ".join(pairs[:SHOWN])
    more = f" First differences: {shown}." if shown else ""
    raise DataError(
        f"The model has {len(model)} classes and the data ({where}) have {len(data)}, not the same ones.{more}",
        hint="Evaluate it on the data that it was trained for, or train it on these classes: m2f train --init.",
    )


def _names(categories: Categories) -> list[str]:
    return [fold_name(category.name) for category in categories]


# --- several annotations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ReadAll:
    """Reader of all annotations of one image.

    Attributes:
        main: reader of the main annotation.
        others: readers of the annotations of further tasks; None where a task has none of this image.
    """

    main: Any
    others: tuple[tuple[Task, Any], ...]

    def __call__(self) -> Annotations:
        return Annotations(self.main(), {task: None if read is None else read() for task, read in self.others})


def _with_missing(data: EvalData, missing: Mapping[Task, DataError]) -> EvalData:
    """Return the data with notes about tasks without annotations of their own.

    Panoptic annotations stand in for these: they know objects and classes, too.
    """
    if "panoptic" not in data.tasks:
        return replace(data, notes=(*data.notes, *(error.message for error in missing.values())))
    notes = [
        f"{e.message} So {task} results are compared with the panoptic annotations." for task, e in missing.items()
    ]
    return replace(data, tasks=(*data.tasks, *missing), notes=(*data.notes, *notes))


def _joined(sets: dict[Task, DataSet], folder: Path | str, full: int | None) -> EvalData:
    """Return the images of the first data set, each with the annotations that the others have of it."""
    first, *more = sets
    main = sets[first]
    own = {task: sets[task] for task in more if not _is_derived(sets[task], main)}
    notes = list(main.notes)
    readers = {task: {record.name: record.read_annotation for record in data.records} for task, data in own.items()}
    for task, own_readers in readers.items():
        known = sum(record.name in own_readers for record in main.records)
        if not known:
            raise DataError(f"{folder}: no image has both {first} and {task} annotations.")
        if known < len(main.records):
            notes.append(f"{len(main.records) - known} images have no {task} annotations, and do not count there.")
    records = main.records
    if readers:
        records = [replace(record, read_annotation=_all_of(record, readers)) for record in main.records]
    return EvalData(main.name, main.format, main.split, folder, tuple(sets), records, full, tuple(dict.fromkeys(notes)))


def _is_derived(data: DataSet, main: DataSet) -> bool:
    """Return True if the annotations are only another view of the panoptic ones, which the metrics take themselves."""
    return main.task == "panoptic" and all(isinstance(record.read_annotation, ReadAs) for record in data.records)


def _all_of(record: Record, readers: dict[Task, dict[str, Any]]) -> _ReadAll:
    return _ReadAll(record.read_annotation, tuple((task, own.get(record.name)) for task, own in readers.items()))

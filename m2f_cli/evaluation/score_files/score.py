"""Scores of predictions in files against annotations in files, from any tool, without a network.

The kinds of the files are recognised, and stated in the result's notes. Images are read in threads, in their order.
Only those on their way are in memory, and the states of the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from ...data.formats.base import ReadOptions
from ...data.formats.class_map import read_class_file
from ...data.formats.coco import read_coco
from ...data.formats.coco_instance import read_instances
from ...data.formats.coco_panoptic import png_folder, read_panoptic
from ...data.formats.label_maps import LabelFile
from ...data.formats.value_map import value_map
from ...data.open_dataset import open_data
from ...data.records import DataSet, Record
from ...errors import DataError
from ...inference.journal import PREDICTIONS, SHARED
from ...inference.stream import thread_pool
from ...metrics.comparable import check_sizes
from ...results.types import Result
from ...runtime.documents import parse_json
from ...runtime.threads import in_order
from ...runtime.trees import Archive, Folder, Tree, open_archive
from ...structures import Task
from ...structures.annotations import Annotation
from ...structures.categories import load_class_table
from ..choose_metrics import choose, known_names
from ..evaluate import EvalProgress, EvalResult
from .readers import CityscapesInstances, InstanceFile, LabelFiles, PanopticFiles, Predictions, Read

_CLASS_FILES = ("classes.yaml", "classes.yml", "classes.txt")
_LOOKED_AT = 50


def score(
    predictions: Path,
    ground_truth: Path,
    metrics: Sequence[str] | None = None,
    *,
    predictions_folder: Path | None = None,
    ground_truth_folder: Path | None = None,
    split: str = "val",
    classes: str | Path | None = None,
    max_dets: int | None = None,
    workers: int = 2,
    on_progress: Callable[[EvalProgress], None] | None = None,
    trust_code: bool = False,
) -> EvalResult:
    """Score predictions that any tool wrote.

    An error in the files ends it: figures over some of the images would be wrong. As in the official tools, an image
    without a prediction is an error; in COCO instance results it is an image where nothing was found.

    Args:
        predictions: a folder of `m2f predict`; a COCO panoptic JSON with its PNGs; COCO instance results (JSON); a
            folder of label maps (PNG); Cityscapes' PNGs or texts with masks; or a zip archive of one of these.
        ground_truth: the folder of a data set, a COCO JSON (panoptic with its PNGs, or instances), or a folder of label
            maps with classes.txt or classes.yaml in it.
        metrics: names in plugins.py, or "all" that apply; None is the one that the kind of prediction is judged by.
        predictions_folder: the folder of the PNGs of predictions in a panoptic JSON, if not beside it.
        ground_truth_folder: the folder of the PNGs of annotations in a panoptic JSON, if not beside it.
        split: the split of a data set's folder.
        classes: a class table in place of the annotations' own.
        max_dets: the most objects of a class in an image that count, for metrics that have such a limit.
        workers: threads that read.
        on_progress: receives a record after each image.
        trust_code: True if `metrics` may be "module:object", as those that a user typed may.

    Raises:
        DataError: files are missing, damaged, of an unknown kind, or do not fit each other.
        ConfigError: a metric is unknown, or for another kind of prediction.
    """
    started = time.perf_counter()
    files = open_predictions(predictions, folder=predictions_folder)
    data = open_annotation(ground_truth, files.task, folder=ground_truth_folder, split=split, classes=classes)
    chosen, notes = choose(
        known_names(metrics or ()),
        data.categories,
        [files.task],
        files.task,
        max_dets=max_dets,
        model="these files",
        trust_code=trust_code,
    )
    matched = files.match(data)
    pairs = zip(data.records, matched.reads, strict=True)
    with thread_pool(workers) as readers, closing(in_order(readers, _load, pairs, workers + 1)) as loaded:
        for number, (name, result, annotation) in enumerate(loaded, 1):
            for metric in chosen.values():
                metric.update(result, annotation)
            if on_progress is not None:
                on_progress(EvalProgress(name, number))
    figures = {name: metric.compute() for name, metric in chosen.items()}
    kinds = [f"predictions are {files.kind}", f"annotations are {data.format}: {data.name}"]
    seconds = time.perf_counter() - started
    return EvalResult(figures, seconds, len(data), notes=[*kinds, *matched.notes, *data.notes, *notes])


def _load(pair: tuple[Record, Read]) -> tuple[str, Result, Annotation]:
    record, read = pair
    annotation = record.read_annotation()
    result = read(annotation.size)
    check_sizes(result, annotation)
    result.image_id = record.image_id
    return record.name, result, annotation


# --- predictions ------------------------------------------------------------------------------------------------------


def open_predictions(path: Path, *, folder: Path | None = None) -> Predictions:
    """Recognise predictions.

    Args:
        path: a folder, a JSON file or a zip archive.
        folder: the folder of the PNGs of a panoptic JSON, if not beside it.

    Raises:
        DataError: there is nothing, or it is damaged, or of no known kind.
    """
    pngs = None if folder is None else _existing_folder(folder)
    if path.is_dir():
        return _inside(Folder(path), pngs)
    if not path.is_file():
        raise DataError(f"There are no predictions {path}.", hint="Give a json file, a folder or a zip archive.")
    if path.suffix.lower() == ".zip":
        return _inside(open_archive(path), pngs)
    if path.name == PREDICTIONS:
        return _inside(Folder(path.parent), pngs)
    return _from_json(Folder(path.parent), path.name, pngs)


def _existing_folder(folder: Path) -> Folder:
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist.")
    return Folder(folder)


def _inside(files: Tree, pngs: Tree | None) -> Predictions:
    """Return the predictions that a folder or an archive holds."""
    if files.has(PREDICTIONS):
        return _own(files)
    # An archive may hold everything in one sub-folder. A folder is not searched in depth: it may hold a huge tree.
    jsons = files.names(suffix=".json", deep=isinstance(files, Archive))
    best = [name for name in jsons if PurePosixPath(name).name in {shared.file for shared in SHARED.values()}] or jsons
    if len(best) > 1:
        raise DataError(f"{files} holds several json files: {', '.join(best[:5])}.", hint="Give one of them.")
    if best:
        above = PurePosixPath(best[0]).parent.as_posix()
        return _from_json(files if above == "." else files.below(above), PurePosixPath(best[0]).name, pngs)
    if files.names(suffix=".txt"):
        return CityscapesInstances(files)
    if files.names(suffix=".png"):
        return LabelFiles(files, own=_is_part_of_run(files))
    raise DataError(
        f"{files} holds no predictions of a known kind.",
        hint="Known are COCO panoptic (json and PNGs), COCO instance results (json), label maps (PNG), and Cityscapes' "
        "texts with masks.",
    )


def _own(files: Tree) -> Predictions:
    """Return the predictions of a folder that `m2f predict` wrote."""
    document = parse_json(files.read(PREDICTIONS), f"{files}/{PREDICTIONS}")
    formats = document.get("formats") if isinstance(document, dict) else []
    if not isinstance(formats, list):
        raise DataError(f"{files}/{PREDICTIONS} should have a list of formats.", hint="Predict again.")
    for name in ("coco-panoptic", "coco-panoptic-zip", "coco-instance"):
        if name in formats and files.has(SHARED[name].file):
            return _from_json(files, SHARED[name].file, None)
    if "label-png" in formats:
        return LabelFiles(files.below("labels"), own=True)
    if "cityscapes-semantic" in formats:
        return LabelFiles(files.below("cityscapes-semantic"))
    if "cityscapes-instance" in formats:
        return CityscapesInstances(files.below("cityscapes-instance"))
    saved = ", ".join(map(str, formats)) or "nothing"
    raise DataError(
        f"The predictions in {files} were saved as {saved}, which cannot be scored.",
        hint="Predict again with --save coco-panoptic, coco-instance or label-png.",
    )


def _is_part_of_run(files: Tree) -> bool:
    above = files.below("..") if isinstance(files, Folder) else None
    return above is not None and files.root.name == "labels" and above.has(PREDICTIONS)


def _from_json(files: Tree, name: str, pngs: Tree | None) -> Predictions:
    where = f"{files}/{name}"
    tree = parse_json(files.read(name), where)
    if isinstance(tree, list):
        return InstanceFile(tree, where)
    annotations = tree.get("annotations") if isinstance(tree, dict) else None
    is_panoptic = isinstance(annotations, list) and all(
        isinstance(each, dict) and "segments_info" in each for each in annotations[:1]
    )
    if not is_panoptic:
        raise DataError(
            f"{where} holds no predictions of a known kind.",
            hint="Known are a list of objects with image_id, category_id, segmentation and score (COCO instance "
            "results), and an object with annotations that have segments_info (COCO panoptic).",
        )
    listed = tree.get("categories")
    return PanopticFiles(
        annotations, listed if isinstance(listed, list) else [], pngs or _pngs_of(files, name, annotations), where
    )


def _pngs_of(files: Tree, name: str, annotations: list[Any]) -> Tree:
    """Return the folder of a panoptic JSON's PNGs.

    It has the JSON's name (beside it or one level up), is called `panoptic`, or is the folder of the JSON itself.
    """
    stem = name.removesuffix(".json")
    folders = [files.below(stem), files.below(f"../{stem}"), files.below("panoptic"), files]
    named = [each.get("file_name") for each in annotations[:_LOOKED_AT] if isinstance(each, dict)]
    return next((pngs for pngs in folders if any(isinstance(png, str) and pngs.has(png) for png in named)), folders[0])


# --- annotations ------------------------------------------------------------------------------------------------------


def open_annotation(
    path: Path, task: Task, *, folder: Path | None = None, split: str = "val", classes: str | Path | None = None
) -> DataSet:
    """Open the annotations that predictions of a task are compared with.

    Their images need not be there, except in a data set.

    Args:
        path: as `ground_truth` in `score`.
        task: the task of the predictions.
        folder: as `ground_truth_folder` in `score`.
        split: as in `score`.
        classes: as in `score`.

    Raises:
        DataError: there is nothing, or it is damaged, of no known kind, or not enough for the task.
    """
    if path.is_dir():
        masks = sorted(path.glob("*.png"))
        return _label_maps(path, masks, task, classes) if masks else open_data(path, split, task=task, classes=classes)
    if not path.is_file() or path.suffix.lower() != ".json":
        raise DataError(f"There are no annotations {path}.", hint="Give the folder of a data set, or a COCO json.")
    coco, options = read_coco(path), ReadOptions(task, classes)
    first = next(iter(coco.annotations.values()), [{}])[0]
    if "segments_info" in first:
        pngs = png_folder(path) if folder is None else _existing_folder(folder).root
        parts, kind = read_panoptic(coco, pngs, [], options, task), "coco-panoptic"
    else:
        parts, kind = read_instances(coco, [], options), "coco-instance"
    categories, records, notes, passed = parts
    return DataSet(str(path), kind, split, task, categories, records, notes, passed)


def _label_maps(folder: Path, masks: list[Path], task: Task, classes: str | Path | None) -> DataSet:
    """Open label maps alone, without their images."""
    if task != "semantic":
        raise DataError(f"{folder} holds label maps, which say nothing of {task} predictions.")
    files = (each / name for each in (folder, folder.parent) for name in _CLASS_FILES)
    named = next((path for path in files if path.is_file()), None)
    if classes is None and named is None:
        raise DataError(
            f"{folder} does not say what its classes are called.",
            hint="Write classes.txt into it, one name per line for 0, 1, 2, …, or name a class table.",
        )
    table = read_class_file(named) if classes is None else load_class_table(classes)
    count = len(table.categories)
    ignored = 65535 if table.ignore_index == 255 < count else table.ignore_index
    values = value_map({number: number for number in range(count)}, table.categories, {ignored})
    # The mask stands in for its image, of which only the size is needed.
    records = [Record(mask.stem, mask, LabelFile(mask, mask, values)) for mask in masks]
    return DataSet(str(folder), "label-maps", "", "semantic", table.categories, records)

"""Official scores of Cityscapes, computed by cityscapesScripts from files that this package's writers made.

The rules are in docs/methods/published-behaviour.md#9. The official code reads the annotation's own PNGs, which the
annotation names as its `source`. Those PNGs tell apart regions that are not evaluated, in a way that no annotation of
this package keeps.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, DataError, MissingDependency
from ..results.server_formats import write_cityscapes_instance, write_cityscapes_semantic
from ..results.types import Instances, PanopticMap, SemanticMap
from ..structures.annotations import Annotation
from ..structures.categories import Categories, load_categories
from ..structures.images import open_image
from . import Figures, State
from .comparable import check_sizes
from .state_io import reading, whole

_EVALUATION = "cityscapesscripts.evaluation"
_LABEL_IDS, _INSTANCE_IDS = "_gtFine_labelIds.png", "_gtFine_instanceIds.png"
_TABLES = ("cityscapes", "cityscapes-instance")
_COUNTS = ("tp", "tpWeighted", "fn", "fnWeighted")
_OF_ANNOTATION = ("instID", "pixelCount", "medDist", "distConf")
_OF_FOUND = ("confidence", "pixelCount", "voidIntersection")


class _NumpyAsBefore:
    """NumPy with `in1d`, which cityscapesScripts 2.3 calls and NumPy 2.4 no longer has."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _refuse(message: str) -> None:
    raise DataError(f"cityscapesScripts: {str(message).rstrip('.')}.")


@functools.cache
def official_tools(name: str) -> Any:
    """Return a module of the official evaluation, changed so that it raises an error where it would end the process."""
    module: Any = importlib.import_module(f"{_EVALUATION}.{name}")
    module.np, module.printError = _NumpyAsBefore(), _refuse
    return module


def _settings(tools: Any) -> Any:
    settings = copy.copy(tools.args)
    settings.quiet = True
    return settings


def _check(categories: Categories, what: str) -> None:
    """Refuse other classes than those of Cityscapes, and a missing package.

    Raises:
        ConfigError: the classes are not those of Cityscapes.
        MissingDependency: cityscapesScripts is not installed.
    """
    names = {category.name for category in categories}
    if names not in ({category.name for category in load_categories(table)} for table in _TABLES):
        raise ConfigError(
            f"{what} need the classes of Cityscapes (the tables {' or '.join(_TABLES)}), and these are others.",
            hint="Use miou, ap or pq.",
        )
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise MissingDependency("cityscapesscripts", what, "cityscapes")


class _Files(NamedTuple):
    """Annotation files of one image in the Cityscapes layout.

    Attributes:
        labels: PNG with the labelId of each pixel.
        instances: PNG with the instance id of each pixel.
        frame: <city>_<sequence>_<frame>, the start of the names of both files.
    """

    labels: Path
    instances: Path
    frame: str


def _files_of(annotation: Annotation) -> _Files:
    """Return the files that an annotation was read from.

    Raises:
        ConfigError: the annotation did not come from the files of Cityscapes.
    """
    source = annotation.source or Path()
    for end in (_LABEL_IDS, _INSTANCE_IDS):
        if source.name.endswith(end):
            frame, folder = source.name.removesuffix(end), source.parent
            return _Files(folder / (frame + _LABEL_IDS), folder / (frame + _INSTANCE_IDS), frame)
    raise ConfigError(
        "The official scores of Cityscapes need its own annotations, gtFine/*/*_gtFine_{labelIds,instanceIds}.png.",
        hint="For other annotations use miou, ap or pq.",
    )


# --- pixels -----------------------------------------------------------------------------------------------------------


class CityscapesPixels:
    """IoU of classes and of categories, and iIoU, as the server of Cityscapes computes them.

    iIoU weights the true pixels of an object by the mean size of its class over the object's own size. It is NaN for
    classes without objects.

    Figures, in percent:
        iou, iiou: means over the classes.
        iou_sup, iiou_sup: means over the categories (flat, human, vehicle, …).
        tables.categories: both figures of each category.

    Raises:
        ConfigError: the classes are not those of Cityscapes.
        MissingDependency: cityscapesScripts is not installed.
    """

    task = "semantic"

    def __init__(self, categories: Categories):
        _check(categories, "The official pixel scores of Cityscapes")
        self.categories = categories
        self._confusion = np.zeros((34, 34), dtype=np.int64)  # true labelId, found labelId
        self._objects: list[list[float]] = []  # one list for each image, in the order of `_keys`

    def update(self, result: PanopticMap | SemanticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        files, tools = _files_of(annotation), official_tools("evalPixelLevelSemanticLabeling")
        settings = _settings(tools)
        confusion, objects = tools.generateMatrix(settings), tools.generateInstanceStats(settings)
        with tempfile.TemporaryDirectory(prefix="m2f-cityscapes-") as folder:
            [png] = write_cityscapes_semantic(result, Path(folder) / files.frame)
            tools.evaluatePair(str(png), str(files.labels), confusion, objects, {}, settings)
        self._confusion += confusion.astype(np.int64)
        self._objects.append([float(objects[group][name][count]) for group, name, count in self._keys()])

    def merge(self, other: CityscapesPixels) -> None:
        self._confusion += other._confusion
        self._objects += other._objects

    def fresh(self) -> CityscapesPixels:
        return CityscapesPixels(self.categories)

    def state(self) -> State:
        """Return the pixels of each pair of labels, and the official counts of objects.

        Returns:
            {"pixels": [[true labelId, found labelId, pixels], …], "objects": a list of numbers for each image}.
        """
        true, found = np.nonzero(self._confusion)
        pixels = np.stack([true, found, self._confusion[true, found]], axis=1).tolist()
        return {"pixels": pixels, "objects": self._objects}

    def restore(self, state: State) -> None:
        part, count = self.fresh(), len(self._keys())
        with reading(self):
            for true, found, pixels in state["pixels"]:
                part._confusion[whole(true, 34), whole(found, 34)] += whole(pixels, 2**62)
            for row in state["objects"]:
                if len(row) != count or not all(map(math.isfinite, row)):
                    raise ValueError(f"{count} finite numbers are expected, not {row!r}")
                part._objects.append([float(value) for value in row])
        self.merge(part)

    def compute(self) -> Figures:
        tools = official_tools("evalPixelLevelSemanticLabeling")
        settings, confusion, objects = _settings(tools), self._confusion, self._summed()
        tools.generateMatrix(settings)  # names the classes in the settings
        labels = {tools.id2label[key].name: key for key in settings.evalLabels}
        iou = {name: tools.getIouScoreForLabel(key, confusion, settings) for name, key in labels.items()}
        iiou = {
            name: tools.getInstanceIouScoreForLabel(key, confusion, objects, settings) for name, key in labels.items()
        }
        groups = {
            name: {
                "iou": 100 * tools.getIouScoreForCategory(name, confusion, settings),
                "iiou": 100 * tools.getInstanceIouScoreForCategory(name, confusion, objects, settings),
            }
            for name in tools.category2labels
            if name != "void"
        }
        figures = {
            "iou": 100 * tools.getScoreAverage(iou, settings),
            "iiou": 100 * tools.getScoreAverage(iiou, settings),
            **{
                f"{key}_sup": tools.getScoreAverage({name: row[key] for name, row in groups.items()}, settings)
                for key in ("iou", "iiou")
            },
        }
        names = [category.name for category in self.categories]
        per_class = {name: {"iou": 100 * iou[name], "iiou": 100 * iiou[name]} for name in names}
        return {**figures, "per_class": per_class, "tables": {"categories": groups}}

    def _keys(self) -> list[tuple[str, str, str]]:
        """Return the keys of the official counts of objects: "classes" or "categories", the name, the count."""
        tools = official_tools("evalPixelLevelSemanticLabeling")
        empty = tools.generateInstanceStats(_settings(tools))
        return [(group, name, count) for group in empty for name in empty[group] for count in _COUNTS]

    def _summed(self) -> dict[str, Any]:
        """Add up the official counts of all images, in the order of the images."""
        tools = official_tools("evalPixelLevelSemanticLabeling")
        summed: dict[str, Any] = tools.generateInstanceStats(_settings(tools))
        for row in self._objects:
            for (group, name, count), value in zip(self._keys(), row, strict=True):
                summed[group][name][count] += value
        return summed


# --- objects ----------------------------------------------------------------------------------------------------------


class CityscapesObjects:
    """Average precision of objects as the server of Cityscapes computes it.

    It differs from COCO's in three points. The curve is not smoothed. IoU must be above the threshold. An object on
    regions that are not evaluated is judged by the same threshold.

    Figures, in percent:
        ap: over the IoU thresholds from 0.50 to 0.95.
        ap50: at the IoU threshold 0.50.

    Raises:
        ConfigError: the classes are not those of Cityscapes.
        MissingDependency: cityscapesScripts is not installed.
    """

    task = "instance"

    def __init__(self, categories: Categories):
        _check(categories, "The official average precisions of Cityscapes")
        self.categories = categories
        self._images: list[str] = []  # the official matches as JSON, which takes much less memory than objects

    def update(self, result: Instances, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        files, tools = _files_of(annotation), official_tools("evalInstanceLevelSemanticLabeling")
        settings = _settings(tools)
        tools.setInstanceLabels(settings)
        with open_image(files.instances) as image:  # refuses a damaged file before cityscapesScripts opens it
            pass
        [objects] = tools.instances2dict([str(files.instances)], False).values()
        with tempfile.TemporaryDirectory(prefix="m2f-cityscapes-") as folder:
            text, *_ = write_cityscapes_instance(result, Path(folder) / files.frame)
            settings.predictionPath = str(text.parent.absolute())
            predictions = tools.readPredInfo(str(text.absolute()), settings)
            own = tools.filterGtInstances(objects, settings)
            true, found = tools.assignGt2Preds(own, image, predictions, settings)
        self._images.append(json.dumps(_lean(true, found)))

    def merge(self, other: CityscapesObjects) -> None:
        self._images += other._images

    def fresh(self) -> CityscapesObjects:
        return CityscapesObjects(self.categories)

    def state(self) -> State:
        """Return the official matches of each image.

        Returns:
            {"pictures": [{"true", "found": class name → [entries of the official matching, one for each object], …}]}.
        """
        return {"pictures": [json.loads(image) for image in self._images]}

    def restore(self, state: State) -> None:
        with reading(self):
            images = [json.dumps(_lean(image["true"], image["found"])) for image in state["pictures"]]
        self._images += images

    def compute(self) -> Figures:
        tools = official_tools("evalInstanceLevelSemanticLabeling")
        settings = _settings(tools)
        tools.setInstanceLabels(settings)
        kinds, matches = {"groundTruth": "true", "prediction": "found"}, {}
        for number, image in enumerate(map(json.loads, self._images)):
            matches[number] = {
                official: {name: image[own].get(name, []) for name in settings.instLabels}
                for official, own in kinds.items()
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
            means = tools.computeAverages(tools.evaluateMatches(matches, settings), settings)
        rows = {
            name: {"ap": 100 * float(row["ap"]), "ap50": 100 * float(np.squeeze(row["ap50%"]))}
            for name, row in means["classes"].items()
        }
        things = [category.name for category in self.categories if category.name in rows]
        figures = {"ap": 100 * float(means["allAp"]), "ap50": 100 * float(means["allAp50%"])}
        return {**figures, "per_class": {name: rows[name] for name in things}}


def _lean(true: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the entries that the official scoring reads, of classes that occur."""
    return {
        "true": {
            name: [_kept(each, _OF_ANNOTATION, "matchedPred", _OF_FOUND[:2]) for each in objects]
            for name, objects in true.items()
            if objects
        },
        "found": {
            name: [_kept(each, _OF_FOUND, "matchedGt", _OF_ANNOTATION) for each in objects]
            for name, objects in found.items()
            if objects
        },
    }


def _kept(entry: Mapping[str, Any], keys: tuple[str, ...], matched: str, of_matched: tuple[str, ...]) -> dict[str, Any]:
    others = [{key: _number(other[key]) for key in (*of_matched, "intersection")} for other in entry[matched]]
    return {**{key: _number(entry[key]) for key in keys}, matched: others}


def _number(value: Any) -> int | float:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} should be a finite number")
    return value

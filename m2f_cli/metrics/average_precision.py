"""Mask average precision of COCO (docs/methods/published-behaviour.md#9).

The overlaps of masks come from faster-coco-eval or pycocotools.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError, MissingDependency, unknown_name
from ..results.types import Instances
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from ..structures.rle import RLE, encode_shape
from . import Figures, State
from .boundary import edge_of_rle
from .coco_matching import RECALLS, SIZES, THRESHOLDS, Objects, Overlaps, Ranked, judge
from .comparable import check_labels, check_sizes, instance_annotation
from .state_io import reading

ENGINES = {"faster-coco-eval": "faster_coco_eval.core.mask", "pycocotools": "pycocotools.mask"}  # the fastest first


class AveragePrecision:
    """Mask AP over the countable classes, as COCO defines it.

    Objects are ranked by score over the whole data set. Precision is read at 101 points of recall, for IoU thresholds
    from 0.50 to 0.95. Boxes are not used. Crowds are no misses, and an object that lies on a crowd is no mistake.
    Objects with equal scores rank in the order of the images. Figures are equal to those of pycocotools, to the last
    bit.

    The engine computes only the overlaps of masks; `coco_matching` matches and ranks. Both engines would keep the run
    lengths of all images until the end. This class keeps 18 bytes of each found object.

    Figures, in percent:
        ap, ap50, ap75: over all thresholds, at 0.5 and at 0.75.
        ap_small, ap_medium, ap_large: of objects by annotated area (below 32², below 96², and above).
        ar1, ar10, ar100: highest recall, by `max_dets`.
        ar_small, ar_medium, ar_large: highest recall, by annotated area.
        tables.precision: precision at 101 points of recall from 0 to 100 %, as a mean over the classes: at IoU "0.50"
            and "0.75", and as "mean" over all thresholds.

    Attributes:
        prefix: the start of the names of the figures.

    Args:
        max_dets: the most objects of one class in one image that count. AP takes the last number, AR each of them.
        engine: "faster-coco-eval" or "pycocotools", which give the same figures; None is the first that is installed.

    Raises:
        ConfigError: no class is countable, or `max_dets` is not ascending from 1 on.
        MissingDependency: the engine is not installed.
    """

    task = "instance"
    prefix = ""

    def __init__(self, categories: Categories, *, max_dets: Sequence[int] = (1, 10, 100), engine: str | None = None):
        self.categories, self.max_dets, self.engine = categories, tuple(max_dets), choose_engine(engine)
        self.labels = [label for label, category in enumerate(categories) if category.isthing]
        if not self.labels:
            raise ConfigError("Average precision needs countable classes (isthing: true), and there are none.")
        if not self.max_dets or list(self.max_dets) != sorted(set(self.max_dets)) or self.max_dets[0] < 1:
            raise ConfigError(f"max_dets = {self.max_dets} should be ascending whole numbers from 1 on.")
        self._ranked = {label: Ranked() for label in self.labels}

    def update(self, result: Instances, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        true, found = self._true(annotation), self._found(result)
        overlaps = importlib.import_module(ENGINES[self.engine]).iou
        judged = {}
        for label in self.labels:
            if label in true or label in found:
                best = found.get(label, Objects()).best(self.max_dets[-1])
                judged[label] = judge(best, true.get(label, Objects()), self._compare(overlaps))
        for label, part in judged.items():
            self._ranked[label].add(part)

    def merge(self, other: AveragePrecision) -> None:
        for label, ranked in self._ranked.items():
            ranked.add(other._ranked[label])

    def fresh(self) -> AveragePrecision:
        return type(self)(self.categories, max_dets=self.max_dets, engine=self.engine)

    def state(self) -> State:
        """Return the objects of the classes that occur.

        Returns:
            {"max_dets": […], "classes": [[class number, state of `coco_matching.Ranked`], …]}.
        """
        rows = [[label, ranked.state()] for label, ranked in self._ranked.items() if ranked]
        return {"max_dets": list(self.max_dets), "classes": rows}

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            if state["max_dets"] != list(self.max_dets):
                raise ValueError(f"max_dets {state['max_dets']}, not {list(self.max_dets)}")
            for label, ranked in state["classes"]:
                part._ranked[label].add(Ranked.of_state(ranked, self.max_dets[-1]))
        self.merge(part)

    def compute(self) -> Figures:
        precision_TRKA, recall_TKAM = self.curves()
        last = len(self.max_dets) - 1
        figures = {
            "ap": _mean(precision_TRKA[..., 0]),
            "ap50": _mean(precision_TRKA[0, ..., 0]),
            "ap75": _mean(precision_TRKA[5, ..., 0]),
        }
        figures |= {f"ap_{size}": _mean(precision_TRKA[..., a]) for a, size in enumerate(SIZES) if a}
        figures |= {f"ar{count}": _mean(recall_TKAM[:, :, 0, m]) for m, count in enumerate(self.max_dets)}
        figures |= {f"ar_{size}": _mean(recall_TKAM[:, :, a, last]) for a, size in enumerate(SIZES) if a}
        rows = (
            {
                "ap": _mean(precision_TRKA[:, :, k, 0]),
                "ap50": _mean(precision_TRKA[0, :, k, 0]),
                "ar": _mean(recall_TKAM[:, k, 0, last]),
                "objects": self._ranked[label].true[0],
            }
            for k, label in enumerate(self.labels)
        )
        names = [self.categories[label].name for label in self.labels]
        named = {self.prefix + name: value for name, value in figures.items()}
        return {
            **named,
            "per_class": {
                name: {key if key == "objects" else self.prefix + key: value for key, value in row.items()}
                for name, row in zip(names, rows, strict=True)
            },
            "tables": {"precision": _mean_curves(precision_TRKA[..., 0])},
        }

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the curves of all classes; -1 where a class has no annotation.

        Returns:
            Precision (IoU thresholds, points of recall, classes, areas) for the last of `max_dets`, and recall (IoU
            thresholds, classes, areas, max_dets).
        """
        counts = len(self.labels), len(SIZES)
        precision_TRKA = -np.ones((len(THRESHOLDS), len(RECALLS), *counts))
        recall_TKAM = -np.ones((len(THRESHOLDS), *counts, len(self.max_dets)))
        for k, label in enumerate(self.labels):
            curves = self._ranked[label].curves(self.max_dets)
            precision_TRKA[:, :, k], recall_TKAM[:, k] = curves
        return precision_TRKA, recall_TKAM

    def _compare(self, overlaps: Overlaps) -> Overlaps:
        """Return the function that compares found and true masks; here the engine's IoU of masks."""
        return overlaps

    def _true(self, annotation: Annotation) -> dict[int, Objects]:
        objects: dict[int, Objects] = {}
        for each in instance_annotation(annotation, self.categories).objects:
            self._check_true(each.label)
            rle = _sized(encode_shape(each.shape, annotation.size), annotation.size)
            area = float(coco_mask.area(rle)) if each.area is None else float(each.area)
            objects.setdefault(each.label, Objects()).add(rle, area, crowd=each.iscrowd)
        return objects

    def _found(self, result: Instances) -> dict[int, Objects]:
        labels, scores = result.labels_N.tolist(), result.scores_N.tolist()
        check_labels(labels, len(self.categories))
        _check_scores(scores)
        objects: dict[int, Objects] = {}
        for label, score, rle in zip(labels, scores, result.rles, strict=True):
            area = float(coco_mask.area(_sized(rle, result.size)))
            objects.setdefault(label, Objects()).add(rle, area, score=score)
        return objects

    def _check_true(self, label: int) -> None:
        if label not in self._ranked:
            raise DataError(
                f"An annotated object has the class number {label}, which is none of the {len(self.labels)} countable "
                f"classes of {len(self.categories)}.",
                hint="Does the class table belong to this data set?",
            )


class BoundaryAveragePrecision(AveragePrecision):
    """Boundary AP (Cheng et al., Boundary IoU, CVPR 2021): AP with the lesser of mask IoU and boundary IoU.

    The boundary IoU compares the parts of the masks that lie within 2 % of the image's diagonal of their outlines.
    Crowds are compared by their masks.

    Figures, in percent:
        boundary_ap, boundary_ap50, …: as in `AveragePrecision`.
    """

    prefix = "boundary_"

    def _compare(self, overlaps: Overlaps) -> Overlaps:
        def lesser(found: list[RLE], true: list[RLE], crowds: list[int]) -> np.ndarray:
            masks_FN = np.asarray(overlaps(found, true, crowds))
            edges_FN = np.asarray(overlaps([*map(edge_of_rle, found)], [*map(edge_of_rle, true)], crowds))
            return np.where(np.array(crowds, dtype=bool), masks_FN, np.minimum(masks_FN, edges_FN))

        return lesser


def choose_engine(name: str | None) -> str:
    """Return the name of an engine that is installed: the one that is named, or the fastest.

    Raises:
        ConfigError: the name is unknown.
        MissingDependency: the engine is not installed.
    """
    if name is not None and name not in ENGINES:
        raise unknown_name("engine of average precision", name, ENGINES)
    for engine in [name] if name else ENGINES:
        if importlib.util.find_spec(ENGINES[engine].partition(".")[0]):
            return engine
    raise MissingDependency(name or "pycocotools", "average precision")


def _sized(rle: RLE, size: tuple[int, int]) -> RLE:
    if tuple(rle["size"]) != tuple(size):
        wrong, right = (" x ".join(map(str, each)) for each in (rle["size"], size))
        raise DataError(f"The mask of an object has {wrong} pixels and its image {right} (height x width).")
    return rle


def _check_scores(scores: Sequence[float]) -> None:
    for score in scores:
        if not math.isfinite(score):
            raise DataError(
                f"A found object has the score {score}, which cannot be ranked.",
                hint="The model's weights, or its half precision, may be broken.",
            )


def _mean_curves(precision_TRK: np.ndarray) -> dict[str, list[float]]:
    """Return precision in percent at each point of recall, as a mean over the classes; nothing without annotations."""
    present_TRK = precision_TRK[:, :, (precision_TRK > -1).all((0, 1))]
    if not present_TRK.size:
        return {}
    mean_TR = 100 * present_TRK.mean(2)
    curves = {"0.50": mean_TR[0], "0.75": mean_TR[5], "mean": mean_TR.mean(0)}
    return {name: [round(value, 4) for value in curve_R.tolist()] for name, curve_R in curves.items()}


def _mean(values: np.ndarray) -> float:
    """Return the mean in percent of the values; -1 stands for a class without annotation. NaN: all are -1."""
    present = values[values > -1]
    return 100 * float(np.mean(present)) if present.size else math.nan

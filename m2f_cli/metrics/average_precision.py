"""COCO's mask average precision (facts 9), computed by faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError, MissingDependency, unknown_name
from ..types import Categories, Instances, Truth
from . import Figures
from .convert import check_sizes, instance_truth, rle_of

ENGINES = {"faster-coco-eval": "faster_coco_eval", "pycocotools": "pycocotools"}  # the fastest first
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels
Records = list[dict[str, Any]]  # annotations as in a COCO json, with a class number in place of ids


@dataclass
class _Picture:
    size: tuple[int, int]
    true: Records
    found: Records


class AveragePrecision:
    """Mask AP over the countable classes, as COCO defines it: ranks by score over the whole data set, 101 points of
    recall, IoU thresholds 0.50 to 0.95. Boxes are not used.

    ap, ap50, ap75: over all thresholds, at 0.5 and at 0.75; ap_small, ap_medium, ap_large: of objects by annotated
    area (below 32², 96², and above); ar1, ar10, ar100 (by `max_dets`), ar_small, …: highest recall. Crowds are no
    misses, and what lies on them is no mistake. Equal scores rank in the order of the pictures.

    Run lengths and scores of all pictures are kept until the end: about 0.4 kB for each found object.

    Args:
        max_dets: the most objects of one class in one picture that count; ap takes the last, ar each of them.
        engine: "faster-coco-eval" or "pycocotools"; None is the first of them that is installed. Same figures.

    Raises:
        ConfigError: no class is countable, or max_dets makes no sense.
        MissingDependency: the engine is not installed.
    """

    task = "instance"

    def __init__(self, categories: Categories, *, max_dets: Sequence[int] = (1, 10, 100), engine: str | None = None):
        self.categories, self.max_dets, self.engine = categories, tuple(max_dets), choose_engine(engine)
        self.labels = [label for label, category in enumerate(categories) if category.isthing]
        if not self.labels:
            raise ConfigError("Average precision needs countable classes (isthing: true), and there are none.")
        if not self.max_dets or list(self.max_dets) != sorted(set(self.max_dets)) or self.max_dets[0] < 1:
            raise ConfigError(f"max_dets = {self.max_dets} should be ascending whole numbers from 1 on.")
        self._pictures: list[_Picture] = []

    def update(self, result: Instances, truth: Truth) -> None:
        check_sizes(result, truth)
        size = tuple(map(int, truth.size))
        true = []
        for each in instance_truth(truth, self.categories).objects:
            self._check(each.label)
            rle = rle_of(each, size)
            area = float(coco_mask.area(rle)) if each.area is None else float(each.area)
            true.append({"label": each.label, "segmentation": rle, "area": area, "iscrowd": int(each.iscrowd)})
        found = [
            {"label": int(label), "segmentation": rle, "area": float(coco_mask.area(rle)), "score": float(score)}
            for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True)
        ]
        self._pictures.append(_Picture(size, true, found))

    def merge(self, other: AveragePrecision) -> None:
        self._pictures += other._pictures

    def compute(self) -> Figures:
        precision_TRKAM, recall_TKAM = self._curves()
        areas, last = list(SIZES), len(self.max_dets) - 1
        figures = {
            "ap": _mean(precision_TRKAM[:, :, :, 0, last]),
            "ap50": _mean(precision_TRKAM[0, :, :, 0, last]),
            "ap75": _mean(precision_TRKAM[5, :, :, 0, last]),
        }
        figures |= {f"ap_{size}": _mean(precision_TRKAM[:, :, :, a, last]) for a, size in enumerate(areas) if a}
        figures |= {f"ar{count}": _mean(recall_TKAM[:, :, 0, m]) for m, count in enumerate(self.max_dets)}
        figures |= {f"ar_{size}": _mean(recall_TKAM[:, :, a, last]) for a, size in enumerate(areas) if a}
        per_class = {
            self.categories[label].name: {
                "ap": _mean(precision_TRKAM[:, :, k, 0, last]), "ap50": _mean(precision_TRKAM[0, :, k, 0, last]),
            }
            for k, label in enumerate(self.labels)
        }  # fmt: skip
        return {**figures, "per_class": per_class}

    def _curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision (IoU thresholds, points of recall, classes, areas, max_dets) and recall (the same without points);
        -1 where there is no truth."""
        coco, evaluator = _tools(self.engine)
        with _silence():
            run = evaluator(self._as_coco(coco, "true"), self._as_coco(coco, "found"), "segm")
            # Ids from 1 on: the tools take 0 for "no match".
            run.params.catIds = [label + 1 for label in self.labels]
            run.params.imgIds = list(range(1, len(self._pictures) + 1))
            run.params.maxDets, run.params.areaRng = list(self.max_dets), [list(bounds) for bounds in SIZES.values()]
            run.params.areaRngLbl = list(SIZES)
            run.evaluate()
            run.accumulate()
        return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])

    def _as_coco(self, coco: Any, kind: str) -> Any:
        """All true or all found objects as a COCO data set."""
        images, annotations = [], []
        for number, picture in enumerate(self._pictures, 1):
            images.append({"id": number, "height": picture.size[0], "width": picture.size[1]})
            for record in getattr(picture, kind):
                own = {"id": len(annotations) + 1, "image_id": number, "category_id": record["label"] + 1}
                annotations.append({"iscrowd": 0, **record, **own})
        categories = [{"id": label + 1, "name": self.categories[label].name} for label in self.labels]
        dataset = coco()
        dataset.dataset = {"images": images, "annotations": annotations, "categories": categories}
        dataset.createIndex()
        return dataset

    def _check(self, label: int) -> None:
        if label not in self.labels:
            raise DataError(
                f"An annotated object has the class number {label}, which is none of the {len(self.labels)} countable "
                f"classes of {len(self.categories)}.",
                hint="Does the class table belong to this data set?",
            )


def choose_engine(name: str | None) -> str:
    """The engine of this name, or the fastest that is installed.

    Raises:
        ConfigError: unknown name; MissingDependency: not installed.
    """
    if name is not None and name not in ENGINES:
        raise unknown_name("engine of average precision", name, ENGINES)
    for engine in [name] if name else ENGINES:
        if importlib.util.find_spec(ENGINES[engine]):
            return engine
    raise MissingDependency(name or "pycocotools", "average precision")


def _tools(engine: str) -> tuple[Any, Any]:
    """The engine's classes for a data set and for an evaluation."""
    if engine == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _mean(values: np.ndarray) -> float:
    """In percent; -1 says that there is no truth."""
    present = values[values > -1]
    return 100 * float(np.mean(present)) if present.size else math.nan

"""Panoptic quality image by image, as the data sets of cell nuclei count it.

The rules are in docs/methods/published-behaviour.md#8-9.
"""

from __future__ import annotations

import functools
import math
import operator
from array import array

import numpy as np

from ..results.types import PanopticMap
from ..structures.annotations import Annotation, PanopticAnnotation
from ..structures.categories import Categories
from . import Figures, State
from .comparable import check_sizes, flat_annotation
from .panoptic_quality import VOID, match
from .state_io import reading, share

KEYS = ("pq", "sq", "rq")


class ImageQuality:
    """PQ of the things of each image, averaged over the images (NuInsSeg, which has one class).

    An image's PQ is Σ IoU / (hits + half of the wrong + half of the missed) over its things, all classes together. A
    hit has an IoU above 0.5 and the right class. There is no void: pixels without annotation are background, and a
    segment that is found there is wrong. Images without things in annotation and result do not count.

    Figures, in percent:
        pq_per_picture, sq_per_picture, rq_per_picture: means over the images. SQ of an image without hits is 0.
    """

    task = "panoptic"

    def __init__(self, categories: Categories):
        self.categories = categories
        self._values = {key: array("d") for key in KEYS}

    def update(self, result: PanopticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        found = match(result, _without_void(flat_annotation(annotation)), len(self.categories))
        ious = [iou for label, iou in found.hits if self.categories[label].isthing]
        wrong, missed = (sum(self.categories[label].isthing for label in each) for each in (found.wrong, found.missed))
        weight = len(ious) + 0.5 * wrong + 0.5 * missed
        if not weight:
            return
        total = functools.reduce(operator.add, ious, 0.0)
        values = total / weight, total / len(ious) if ious else 0.0, len(ious) / weight
        for key, value in zip(KEYS, values, strict=True):
            self._values[key].append(value)

    def merge(self, other: ImageQuality) -> None:
        for key, values in self._values.items():
            values.extend(other._values[key])

    def fresh(self) -> ImageQuality:
        return ImageQuality(self.categories)

    def state(self) -> State:
        """Return the shares of all images: {"pq", "sq", "rq": a share of 1 for each image}."""
        return {key: values.tolist() for key, values in self._values.items()}

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            for key, values in part._values.items():
                values.extend(map(share, state[key]))
            if len({*map(len, part._values.values())}) != 1:
                raise ValueError("unequal numbers of images")
        self.merge(part)

    def compute(self) -> Figures:
        return {
            f"{key}_per_picture": 100 * float(np.mean(values)) if values else math.nan
            for key, values in self._values.items()
        } | {"per_class": {}}


def _without_void(annotation: PanopticAnnotation) -> PanopticAnnotation:
    background = max(int(annotation.ids_HW.max(initial=0)), *(segment.id for segment in annotation.segments), 0) + 1
    return PanopticAnnotation(np.where(annotation.ids_HW == VOID, background, annotation.ids_HW), annotation.segments)

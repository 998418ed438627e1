"""Conversion of annotations from one task to another, with a count of what is lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import ConfigError, unknown_name
from ...structures import Task
from ...structures.annotations import (
    AnnotatedSegment,
    Annotation,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
    as_instance,
    as_panoptic,
    as_semantic,
    ignore_value,
)
from ...structures.categories import Categories, Category
from ...structures.rle import encode_shape
from ...structures.run_lengths import values_in
from .base import Lost

BACKGROUND = "background"


@dataclass(frozen=True)
class Recast:
    """Conversion of a data set's annotations to those of `task`.

    Attributes:
        source: the classes before.
        categories: the classes after.
        task: the task of the result.
        separate: class numbers of label maps whose connected regions become objects.
    """

    source: Categories
    categories: Categories
    task: Task
    separate: frozenset[int] = frozenset()

    def __call__(self, annotation: Annotation) -> tuple[Annotation, Lost]:
        """Return the converted annotation, and the losses.

        The losses are pixels of "overlaps", and the numbers of "hidden", "crowds", "objects", "outlines" and "groups".
        """
        kind = {"panoptic": PanopticAnnotation, "instance": InstanceAnnotation, "semantic": SemanticAnnotation}[
            self.task
        ]
        if isinstance(annotation, kind):
            return annotation, Counter()
        if self.task == "instance":
            return self._instances(annotation)
        return self._panoptic(annotation) if self.task == "panoptic" else self._semantic(annotation)

    def _panoptic(self, annotation: InstanceAnnotation | SemanticAnnotation) -> tuple[PanopticAnnotation, Lost]:
        if isinstance(annotation, InstanceAnnotation):
            ids_HW, lost = paint(annotation)
            present = set(values_in(ids_HW).tolist())
            named = [(number, item) for number, item in enumerate(annotation.objects, 1) if number in present]
            return PanopticAnnotation(
                ids_HW, [AnnotatedSegment(n, item.label, item.iscrowd) for n, item in named]
            ), lost
        panoptic = as_panoptic(annotation, self.separate)
        for segment in panoptic.segments:
            segment.iscrowd = self.source[segment.label].isthing and segment.label not in self.separate
        return panoptic, Counter(groups=sum(segment.iscrowd for segment in panoptic.segments))

    def _instances(self, annotation: PanopticAnnotation | SemanticAnnotation) -> tuple[InstanceAnnotation, Lost]:
        if isinstance(annotation, SemanticAnnotation):
            annotation = as_panoptic(annotation, self.separate)
        numbers = {category.name: number for number, category in enumerate(self.categories)}
        renumbered = {old: numbers[c.name] for old, c in enumerate(self.source) if c.name in numbers}
        kept = [dataclasses.replace(s, label=renumbered[s.label]) for s in annotation.segments if s.label in renumbered]
        return as_instance(dataclasses.replace(annotation, segments=kept), self.categories), Counter()

    def _semantic(self, annotation: InstanceAnnotation | PanopticAnnotation) -> tuple[SemanticAnnotation, Lost]:
        if isinstance(annotation, PanopticAnnotation):
            things = sum(self.source[segment.label].isthing for segment in annotation.segments)
            crowds = sum(segment.iscrowd for segment in annotation.segments)
            return as_semantic(annotation, len(self.categories)), Counter(objects=things - crowds, crowds=crowds)
        ids_HW, lost = paint(annotation)
        background = [category.name for category in self.categories].index(BACKGROUND)
        ignore = ignore_value(len(self.categories))
        labels = np.array([background, *(item.label for item in annotation.objects)])
        crowds = sum(item.iscrowd for item in annotation.objects)
        lost.update(objects=len(annotation.objects) - crowds, crowds=crowds)
        return SemanticAnnotation(labels.astype(np.min_scalar_type(ignore))[ids_HW], ignore), lost


def plan(source: Categories, given: Task, wanted: Task, separate: Collection[str] = ()) -> Recast:
    """Return the conversion from annotations of the task `given` to those of the task `wanted`.

    Args:
        separate: names of classes of label maps whose connected regions are one object each.

    Raises:
        ConfigError: classes are unknown, or objects are wanted from label maps, which do not tell them apart.
    """
    names = [category.name for category in source]
    for name in separate:
        if name not in names:
            raise unknown_name("class", name, names)
    if separate and (given != "semantic" or wanted == "semantic"):
        raise ConfigError(
            "separate makes objects out of the regions of label maps, which is not what is asked for here.",
            hint="Leave it out.",
        )
    chosen = frozenset(names.index(name) for name in separate)
    categories = tuple(dataclasses.replace(c, isthing=c.isthing or n in chosen) for n, c in enumerate(source))
    if given == "semantic" and wanted == "instance":
        if not chosen:
            raise ConfigError(
                "Label maps do not tell objects apart.",
                hint=f"Name the classes whose connected regions are objects: --separate NAME ({', '.join(names[:5])}).",
            )
        categories = tuple(category for number, category in enumerate(categories) if number in chosen)
    elif given == "panoptic" and wanted == "instance":
        categories = tuple(category for category in categories if category.isthing)
    elif given == "instance" and wanted == "semantic" and BACKGROUND not in names:
        highest = max(category.id for category in source)
        categories = (*categories, Category(highest + 1, BACKGROUND, isthing=False, color=(0, 0, 0)))
    return Recast(source, categories, wanted, chosen)


def paint(annotation: InstanceAnnotation) -> tuple[np.ndarray, Lost]:
    """Paint objects into one map, and return it with the losses.

    The map is (H, W) int32: the position + 1 of the object of each pixel, 0 for none. Crowds lie below all others and
    large objects below small ones, so that as few as possible vanish.
    """
    rles = [encode_shape(item.shape, annotation.size) for item in annotation.objects]
    areas = [int(coco_mask.area(rle)) for rle in rles]
    order = sorted(range(len(rles)), key=lambda n: (not annotation.objects[n].iscrowd, -areas[n], n))
    ids_HW = np.zeros(annotation.size, dtype=np.int32)
    for n in order:
        ids_HW[coco_mask.decode(rles[n]).view(bool)] = n + 1
    covered = int(np.count_nonzero(ids_HW))
    hidden = len(rles) - np.count_nonzero(values_in(ids_HW)) if rles else 0
    drawn = sum(isinstance(item.shape, list) for item in annotation.objects)
    return ids_HW, Counter(overlaps=sum(areas) - covered, hidden=int(hidden), outlines=drawn)

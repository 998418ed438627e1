"""Checks that a result and an annotation fit each other, and their conversion to the form that a metric compares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError
from ..results.types import PanopticMap, Result, Segment, SemanticMap
from ..structures.annotations import (
    AnnotatedSegment,
    Annotation,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
    as_instance,
    as_panoptic,
    as_semantic,
)
from ..structures.categories import Categories
from ..structures.rle import encode_shape
from ..structures.run_lengths import areas_in, renamed

AnySegment = TypeVar("AnySegment", AnnotatedSegment, Segment)


def check_sizes(result: Result, annotation: Annotation) -> None:
    """Refuse a result and an annotation of different sizes.

    Raises:
        DataError: the result and the annotation are not of one size.
    """
    if tuple(result.size) != tuple(annotation.size):
        found, true = (" x ".join(map(str, size)) for size in (result.size, annotation.size))
        raise DataError(
            f"The result has {found} pixels and its annotation {true} (height x width).",
            hint="Does the annotation belong to this image?",
        )


def check_labels(labels: Iterable[int], num_classes: int) -> None:
    """Refuse class numbers outside of 0 to `num_classes` - 1.

    Raises:
        DataError: a class number does not exist.
    """
    outside = sorted(label for label in set(labels) if not 0 <= label < num_classes)
    if outside:
        raise DataError(
            f"The class number {outside[-1]} occurs, but there are {num_classes} classes.",
            hint="Does the class table belong to this data set?",
        )


def check_found(labels: np.ndarray, num_classes: int) -> None:
    """Refuse a map of classes with numbers that stand for nothing; 255 and 65535 stand for "none".

    Args:
        labels: the values that occur, int64.
        num_classes: number of classes.

    Raises:
        DataError: a class number does not exist.
    """
    check_labels(labels[(labels != 255) & (labels != 65535)].tolist(), num_classes)


def segments_by_id(
    annotation: PanopticAnnotation, result: PanopticMap, num_classes: int
) -> tuple[dict[int, AnnotatedSegment], dict[int, Segment]]:
    """Return the segments of an annotation and those of a result, each by their ids.

    Raises:
        DataError: a class number does not exist, or two segments of one map have the same id.
    """
    true_labels = (segment.label for segment in annotation.segments)
    found_labels = (segment.label for segment in result.segments)
    check_labels((*true_labels, *found_labels), num_classes)
    return _by_id(annotation.segments, "annotation"), _by_id(result.segments, "result")


def _by_id(segments: Sequence[AnySegment], whose: str) -> dict[int, AnySegment]:
    by_id = {segment.id: segment for segment in segments}
    if len(by_id) != len(segments):
        ids = [segment.id for segment in segments]
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"The {whose} has several segments of the id {twice}.")
    return by_id


def check_ids(in_map: Iterable[int], known: Iterable[int]) -> None:
    """Refuse ids in the map of a result that no segment has; 0 is void.

    Raises:
        DataError: the map has such an id.
    """
    unknown = sorted(set(in_map) - set(known) - {0})
    if unknown:
        raise DataError(f"The map of the result has the id {unknown[0]}, which none of its segments has.")


def instance_annotation(annotation: Annotation, categories: Categories) -> InstanceAnnotation:
    """Return the objects of an annotation; of a panoptic annotation its things, crowds included, as run lengths.

    Raises:
        ConfigError: the annotation knows no objects.
        DataError: a class number does not exist, or an object has no shape.
    """
    if isinstance(annotation, InstanceAnnotation):
        return _check_shapes(annotation)
    if not isinstance(annotation, PanopticAnnotation):
        raise _wrong_kind("objects", "instance or panoptic", annotation)
    check_labels((segment.label for segment in annotation.segments), len(categories))
    return as_instance(annotation, categories)


def semantic_annotation(annotation: Annotation, categories: Categories) -> SemanticAnnotation:
    """Return the class of every pixel; of a panoptic annotation the class of its segment, also of a crowd.

    The published mIoU figures of panoptic models are measured in this way (the panoptic_semseg_* folders,
    docs/methods/published-behaviour.md#9).

    Raises:
        ConfigError: the annotation does not give the class of every pixel.
        DataError: a class number does not exist.
    """
    if isinstance(annotation, SemanticAnnotation):
        return annotation
    if not isinstance(annotation, PanopticAnnotation):
        raise _wrong_kind("classes of pixels", "semantic or panoptic", annotation)
    check_labels((segment.label for segment in annotation.segments), len(categories))
    return as_semantic(annotation, len(categories))


def panoptic_annotation(annotation: Annotation) -> PanopticAnnotation:
    """Return an annotation as segments: each class of a semantic annotation is one segment; ignored pixels are void.

    Raises:
        ConfigError: the annotation does not give the class of every pixel.
    """
    if isinstance(annotation, PanopticAnnotation):
        return annotation
    if not isinstance(annotation, SemanticAnnotation):
        raise _wrong_kind("segments", "panoptic or semantic", annotation)
    return as_panoptic(annotation)


def flat_annotation(annotation: Annotation) -> PanopticAnnotation:
    """Return an annotation as segments: objects are numbered from 1 on, and later objects lie on top.

    Raises:
        ConfigError: the annotation knows no objects.
        DataError: an object has no shape.
    """
    if isinstance(annotation, PanopticAnnotation):
        return annotation
    if not isinstance(annotation, InstanceAnnotation):
        raise _wrong_kind("objects", "instance or panoptic", annotation)
    ids_HW = np.zeros(annotation.size, dtype=np.int32)
    for number, each in enumerate(_check_shapes(annotation).objects, 1):
        ids_HW[coco_mask.decode(encode_shape(each.shape, annotation.size)) > 0] = number
    segments = [AnnotatedSegment(number, each.label, each.iscrowd) for number, each in enumerate(annotation.objects, 1)]
    return PanopticAnnotation(ids_HW, segments)


def panoptic_result(result: PanopticMap | SemanticMap) -> PanopticMap:
    """Return a result as segments: each class of a semantic map is one of score 1; pixels without a class are void.

    Raises:
        DataError: a class number does not exist.
    """
    if isinstance(result, PanopticMap):
        return result
    areas, count = areas_in(result.labels_HW), len(result.categories)
    check_found(np.array(list(areas)), count)
    segments = [Segment(label + 1, label, 1.0, area) for label, area in areas.items() if label < count]
    ids_HW = renamed(result.labels_HW, {segment.label: segment.id for segment in segments}, 0, np.int32)
    return PanopticMap(result.size, result.categories, ids_HW, segments)


def _check_shapes(annotation: InstanceAnnotation) -> InstanceAnnotation:
    for each in annotation.objects:
        if not each.shape:
            raise DataError(f"An annotated object of class number {each.label} has neither polygons nor a mask.")
    return annotation


def _wrong_kind(what: str, kinds: str, annotation: Annotation) -> ConfigError:
    return ConfigError(
        f"The metric compares {what}, which the annotations ({type(annotation).__name__}) do not have.",
        hint=f"Use a data set with {kinds} annotations, or another metric.",
    )

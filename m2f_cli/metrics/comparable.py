"""One kind of truth or result as another: what a panoptic map says about objects and classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError
from ..results.types import PanopticMap, Result, Segment, SemanticMap
from ..structures.annotations import InstanceTruth, PanopticTruth, SemanticTruth, TrueObject, TrueSegment, Truth
from ..structures.categories import Categories
from ..structures.run_lengths import pair_counts, renamed


def check_sizes(result: Result, truth: Truth) -> None:
    """Raises:
    DataError: result and truth are not of one size.
    """
    if tuple(result.size) != tuple(truth.size):
        found, true = (" x ".join(map(str, size)) for size in (result.size, truth.size))
        raise DataError(
            f"The result has {found} pixels and its annotation {true} (height x width).",
            hint="Does the annotation belong to this picture?",
        )


def check_labels(labels: Iterable[int], num_classes: int) -> None:
    """Raises:
    DataError: a class number that does not exist.
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

    Raises:
        DataError: a class number that does not exist.
    """
    check_labels(labels[(labels != 255) & (labels != 65535)].tolist(), num_classes)


def instance_truth(truth: Truth, categories: Categories) -> InstanceTruth:
    """The objects of an annotation: of a panoptic one its things, crowds included, as run lengths.

    Raises:
        ConfigError: the annotation knows no objects; DataError: a class number that does not exist.
    """
    if isinstance(truth, InstanceTruth):
        return truth
    if not isinstance(truth, PanopticTruth):
        raise _wrong_kind("objects", "instance or panoptic", truth)
    check_labels((segment.label for segment in truth.segments), len(categories))
    things = [segment for segment in truth.segments if categories[segment.label].isthing]
    return InstanceTruth(
        truth.size,
        [TrueObject(segment.label, _encode(truth.ids_HW == segment.id), segment.iscrowd) for segment in things],
    )


def semantic_truth(truth: Truth, categories: Categories) -> SemanticTruth:
    """The class of every pixel: of a panoptic annotation the class of its segment; a crowd has its class.

    So are the published mIoU figures of panoptic models measured (the panoptic_semseg_* folders,
    docs/methods/published-behaviour.md#9).

    Raises:
        ConfigError: the annotation does not say it of every pixel; DataError: a class number that does not exist.
    """
    if isinstance(truth, SemanticTruth):
        return truth
    if not isinstance(truth, PanopticTruth):
        raise _wrong_kind("classes of pixels", "semantic or panoptic", truth)
    check_labels((segment.label for segment in truth.segments), len(categories))
    labels = {segment.id: segment.label for segment in truth.segments}
    dtype, ignore = (np.uint8, 255) if len(categories) <= 255 else (np.uint16, 65535)
    return SemanticTruth(renamed(truth.ids_HW, labels, ignore, dtype), ignore)


def panoptic_truth(truth: Truth) -> PanopticTruth:
    """An annotation as segments: of a semantic one each class is one segment, and what is ignored is void.

    Raises:
        ConfigError: the annotation does not say it of every pixel.
    """
    if isinstance(truth, PanopticTruth):
        return truth
    if not isinstance(truth, SemanticTruth):
        raise _wrong_kind("segments", "panoptic or semantic", truth)
    labels = [int(label) for label in np.unique(truth.labels_HW) if label != truth.ignore]
    ids_HW = renamed(truth.labels_HW, {label: label + 1 for label in labels}, 0, np.int32)
    return PanopticTruth(ids_HW, [TrueSegment(label + 1, label) for label in labels])


def flat_truth(truth: Truth) -> PanopticTruth:
    """An annotation as segments: objects are numbered from 1 on, and where they overlap the later one is on top.

    Raises:
        ConfigError: the annotation knows no objects; DataError: an object has no shape.
    """
    if isinstance(truth, PanopticTruth):
        return truth
    if not isinstance(truth, InstanceTruth):
        raise _wrong_kind("objects", "instance or panoptic", truth)
    ids_HW = np.zeros(truth.size, dtype=np.int32)
    for number, each in enumerate(truth.objects, 1):
        ids_HW[coco_mask.decode(rle_of(each, truth.size)) > 0] = number
    segments = [TrueSegment(number, each.label, each.iscrowd) for number, each in enumerate(truth.objects, 1)]
    return PanopticTruth(ids_HW, segments)


def panoptic_result(result: PanopticMap | SemanticMap) -> PanopticMap:
    """A result as segments: of a semantic map each class is one segment of score 1; pixels without a class are void.

    Raises:
        DataError: a class number that does not exist.
    """
    if isinstance(result, PanopticMap):
        return result
    labels, _, areas = pair_counts(result.labels_HW, result.labels_HW)
    check_found(labels, len(result.categories))
    segments = [
        Segment(int(label) + 1, int(label), 1.0, int(area))
        for label, area in zip(labels, areas, strict=True)
        if label < len(result.categories)
    ]
    ids_HW = renamed(result.labels_HW, {segment.label: segment.id for segment in segments}, 0, np.int32)
    return PanopticMap(result.size, result.categories, ids_HW, segments)


def rle_of(true_object: TrueObject, size: tuple[int, int]) -> dict[str, Any]:
    """An annotated object as compressed COCO run lengths, as pycocotools rasters polygons.

    Raises:
        DataError: the object has no shape.
    """
    shape = true_object.shape
    if not shape:
        raise DataError(f"An annotated object of class number {true_object.label} has neither polygons nor a mask.")
    if isinstance(shape, dict):
        packed = not isinstance(shape["counts"], list)
        return shape if packed else coco_mask.frPyObjects(shape, *size)
    polygons = [np.asarray(polygon, dtype=np.float64).ravel().tolist() for polygon in shape]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def _encode(mask_HW: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))


def _wrong_kind(what: str, kinds: str, truth: Truth) -> ConfigError:
    return ConfigError(
        f"The metric compares {what}, which the annotations ({type(truth).__name__}) do not have.",
        hint=f"Use a data set with {kinds} annotations, or another metric.",
    )

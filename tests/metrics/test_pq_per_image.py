"""PQ image by image, by hand and against PQ of single images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.metrics.pq_per_image import ImageQuality
from m2f_cli.results.types import PanopticMap, Segment
from m2f_cli.structures.annotations import AnnotatedObject, AnnotatedSegment, InstanceAnnotation, PanopticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = (Category(1, "nucleus", True, (0, 0, 0)), Category(2, "tissue", False, (0, 0, 0)))
NUCLEUS, TISSUE = range(2)


def found(ids_HW, stuff=()) -> PanopticMap:
    ids_HW = np.array(ids_HW, np.int32)
    segments = [Segment(int(i), TISSUE if i in stuff else NUCLEUS, 0.9, 1) for i in np.unique(ids_HW) if i]
    return PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, segments)


def true(ids_HW, stuff=()) -> PanopticAnnotation:
    ids_HW = np.array(ids_HW, np.int32)
    return PanopticAnnotation(
        ids_HW, [AnnotatedSegment(int(i), TISSUE if i in stuff else NUCLEUS) for i in np.unique(ids_HW) if i]
    )


def of(*images) -> dict[str, float]:
    metric = ImageQuality(CATEGORIES)
    for result, annotation in images:
        metric.update(result, annotation)
    return metric.compute()


def test_by_hand_with_background_that_is_no_void():
    first = found([[1, 1, 1, 0, 2, 2]]), true([[5, 5, 0, 0, 0, 0]])  # IoU 2/3, and one on the background
    second = found([[1, 1, 0, 0, 0, 0]]), true([[4, 4, 0, 6, 6, 6]])  # IoU 1, and one missed
    figures = of(first, second)
    assert figures["pq_per_picture"] == pytest.approx(100 * (2 / 3 / 1.5 + 1 / 1.5) / 2)
    assert figures["sq_per_picture"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert figures["rq_per_picture"] == pytest.approx(100 / 1.5)


def test_stuff_does_not_count():
    result, annotation = found([[1, 1, 2, 2]], stuff=[2]), true([[1, 1, 3, 3]], stuff=[3])
    assert of((result, annotation))["pq_per_picture"] == 100.0
    assert math.isnan(of((found([[2, 2]], stuff=[2]), true([[3, 0]], stuff=[3])))["pq_per_picture"])


def test_nothing_found_and_nothing_true():
    assert of((found([[0, 0]]), true([[1, 0]])))["pq_per_picture"] == 0.0
    assert of((found([[1, 0]]), true([[0, 0]])))["pq_per_picture"] == 0.0
    empty = found([[0, 0]]), true([[0, 0]])
    assert math.isnan(of()["pq_per_picture"]) and math.isnan(of(empty)["sq_per_picture"])
    assert of(empty, (found([[1]]), true([[1]])))["pq_per_picture"] == 100.0  # the empty one does not count


def test_objects_as_annotation_the_later_on_top():
    def mask(*columns):
        mask_HW = np.zeros((1, 6), np.uint8, order="F")
        mask_HW[0, list(columns)] = 1
        return coco_mask.encode(mask_HW)

    annotation = InstanceAnnotation(
        (1, 6), [AnnotatedObject(NUCLEUS, mask(0, 1, 2)), AnnotatedObject(NUCLEUS, mask(2, 3, 4))]
    )
    assert of((found([[1, 1, 2, 2, 2, 0]]), annotation))["pq_per_picture"] == 100.0


def test_one_class_is_the_pq_of_each_image():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(8):
        annotation = np.kron(rng.integers(0, 6, (4, 4)), np.ones((5, 5), int))
        result = np.where(rng.random(annotation.shape) < 0.15, 0, np.roll(annotation, 1, 1))
        images.append((found(result), true(annotation)))
    single = []
    for result, annotation in images:
        metric = PanopticQuality(CATEGORIES)
        ids_HW = np.where(
            annotation.ids_HW == 0, 99, annotation.ids_HW
        )  # an id that no segment has: neither void nor annotation
        metric.update(result, PanopticAnnotation(ids_HW, annotation.segments))
        single.append(metric.compute()["pq"])
    assert of(*images)["pq_per_picture"] == pytest.approx(np.mean(single))
    assert len(set(single)) > 4

"""PQ picture by picture, by hand and against PQ of single pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.metrics.pq_per_image import PictureQuality
from m2f_cli.results.types import PanopticMap, Segment
from m2f_cli.structures.annotations import InstanceTruth, PanopticTruth, TrueObject, TrueSegment
from m2f_cli.structures.categories import Category

CATEGORIES = (Category(1, "nucleus", True, (0, 0, 0)), Category(2, "tissue", False, (0, 0, 0)))
NUCLEUS, TISSUE = range(2)


def found(ids_HW, stuff=()) -> PanopticMap:
    ids_HW = np.array(ids_HW, np.int32)
    segments = [Segment(int(i), TISSUE if i in stuff else NUCLEUS, 0.9, 1) for i in np.unique(ids_HW) if i]
    return PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, segments)


def true(ids_HW, stuff=()) -> PanopticTruth:
    ids_HW = np.array(ids_HW, np.int32)
    return PanopticTruth(
        ids_HW, [TrueSegment(int(i), TISSUE if i in stuff else NUCLEUS) for i in np.unique(ids_HW) if i]
    )


def of(*pictures) -> dict[str, float]:
    metric = PictureQuality(CATEGORIES)
    for result, truth in pictures:
        metric.update(result, truth)
    return metric.compute()


def test_by_hand_with_background_that_is_no_void():
    first = found([[1, 1, 1, 0, 2, 2]]), true([[5, 5, 0, 0, 0, 0]])  # IoU 2/3, and one on the background
    second = found([[1, 1, 0, 0, 0, 0]]), true([[4, 4, 0, 6, 6, 6]])  # IoU 1, and one missed
    figures = of(first, second)
    assert figures["pq_per_picture"] == pytest.approx(100 * (2 / 3 / 1.5 + 1 / 1.5) / 2)
    assert figures["sq_per_picture"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert figures["rq_per_picture"] == pytest.approx(100 / 1.5)


def test_stuff_does_not_count():
    result, truth = found([[1, 1, 2, 2]], stuff=[2]), true([[1, 1, 3, 3]], stuff=[3])
    assert of((result, truth))["pq_per_picture"] == 100.0
    assert math.isnan(of((found([[2, 2]], stuff=[2]), true([[3, 0]], stuff=[3])))["pq_per_picture"])


def test_nothing_found_and_nothing_true():
    assert of((found([[0, 0]]), true([[1, 0]])))["pq_per_picture"] == 0.0
    assert of((found([[1, 0]]), true([[0, 0]])))["pq_per_picture"] == 0.0
    empty = found([[0, 0]]), true([[0, 0]])
    assert math.isnan(of()["pq_per_picture"]) and math.isnan(of(empty)["sq_per_picture"])
    assert of(empty, (found([[1]]), true([[1]])))["pq_per_picture"] == 100.0  # the empty one does not count


def test_objects_as_truth_the_later_on_top():
    def mask(*columns):
        mask_HW = np.zeros((1, 6), np.uint8, order="F")
        mask_HW[0, list(columns)] = 1
        return coco_mask.encode(mask_HW)

    truth = InstanceTruth((1, 6), [TrueObject(NUCLEUS, mask(0, 1, 2)), TrueObject(NUCLEUS, mask(2, 3, 4))])
    assert of((found([[1, 1, 2, 2, 2, 0]]), truth))["pq_per_picture"] == 100.0


def test_one_class_is_the_pq_of_each_picture():
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(8):
        truth = np.kron(rng.integers(0, 6, (4, 4)), np.ones((5, 5), int))
        result = np.where(rng.random(truth.shape) < 0.15, 0, np.roll(truth, 1, 1))
        pictures.append((found(result), true(truth)))
    single = []
    for result, truth in pictures:
        metric = PanopticQuality(CATEGORIES)
        ids_HW = np.where(truth.ids_HW == 0, 99, truth.ids_HW)  # an id that no segment has: neither void nor truth
        metric.update(result, PanopticTruth(ids_HW, truth.segments))
        single.append(metric.compute()["pq"])
    assert of(*pictures)["pq_per_picture"] == pytest.approx(np.mean(single))
    assert len(set(single)) > 4

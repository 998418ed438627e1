"""Every metric on what should not happen: one clear error and nothing counted, or a defined figure."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from m2f_cli.structures.categories import Category

NAMES = ("pq", "pq-stuff", "pq-per-picture", "ap", "boundary-ap", "miou", "boundary-iou", "boundary-iou-mass13k")
HEADLINES = {
    "pq": "pq",
    "pq-stuff": "pq_stuff",
    "pq-per-picture": "pq_per_picture",
    "ap": "ap",
    "boundary-ap": "boundary_ap",
    "miou": "miou",
    "boundary-iou": "boundary_iou",
    "boundary-iou-mass13k": "boundary_iou_mass13k",
}
every = pytest.mark.parametrize("name", NAMES)
panoptic_only = pytest.mark.parametrize("name", ["pq", "pq-per-picture"])
objects_only = pytest.mark.parametrize("name", ["ap", "boundary-ap"])
classes_only = pytest.mark.parametrize("name", ["pq-stuff", "miou", "boundary-iou", "boundary-iou-mass13k"])
CATEGORIES = tuple(Category(10 + i, name, True, (i, 0, 0)) for i, name in enumerate(["car", "person", "bus"]))
CAR, PERSON, BUS = range(3)
SIZE = (12, 10)
IDS_HW = np.kron([[1, 1], [2, 3]], np.ones((6, 5), int)).astype(np.int32)  # car, person, and void at 3 below
IDS_HW[IDS_HW == 3] = 0
LABELS = {1: CAR, 2: PERSON}


def metric_of(name: str, categories=CATEGORIES):
    return plugins.get("metrics", name)(categories)


def result(metric, ids_HW=IDS_HW, labels=LABELS, scores=None, categories=CATEGORIES):
    """What a model found, as the metric's task has it."""
    ids_HW, scores = np.asarray(ids_HW, np.int32), scores or {}
    if metric.task == "panoptic":
        segments = [Segment(i, label, scores.get(i, 0.5), 1) for i, label in labels.items()]
        return PanopticMap(ids_HW.shape, categories, ids_HW, segments)
    if metric.task == "semantic":
        table = np.full(max(int(ids_HW.max()), *labels, 0) + 1, 255, np.uint8)
        table[list(labels)] = list(labels.values())
        return SemanticMap(ids_HW.shape, categories, table[ids_HW])
    rles = [coco_mask.encode(np.asfortranarray(ids_HW == i).astype(np.uint8)) for i in labels]
    values = np.array([scores.get(i, 0.5) for i in labels], np.float32)
    return Instances(ids_HW.shape, categories, np.array(list(labels.values()), np.int64), values, rles)


def annotation(ids_HW=IDS_HW, labels=LABELS):
    return PanopticAnnotation(np.asarray(ids_HW, np.int32), [AnnotatedSegment(i, label) for i, label in labels.items()])


def refused(metric, found, true, says, error=DataError):
    before = json.dumps([metric.state(), metric.compute()])
    with pytest.raises(error, match=says):
        metric.update(found, true)
    assert json.dumps([metric.state(), metric.compute()]) == before


def headline(metric) -> float:
    return metric.compute()[HEADLINES[type_name(metric)]]


def type_name(metric) -> str:
    return next(name for name in NAMES if plugins.get("metrics", name) is type(metric))


@every
def test_right_input_is_100(name):
    metric = metric_of(name)
    metric.update(result(metric), annotation())
    assert headline(metric) == pytest.approx(100)


@every
def test_nothing_at_all_is_nan(name):
    figures = metric_of(name).compute()
    assert all(math.isnan(value) for key, value in figures.items() if key not in ("per_class", "tables"))
    rows = figures["per_class"].values()
    assert all(math.isnan(value) or value == 0 for row in rows for value in row.values())


@every
def test_an_empty_result_is_0(name):
    metric = metric_of(name)
    metric.update(result(metric, np.zeros(SIZE), {}), annotation())
    assert headline(metric) == 0.0


@every
def test_an_empty_annotation_is_nan_or_0(name):
    metric = metric_of(name)
    metric.update(result(metric), annotation(np.zeros(SIZE), {}))
    # Void excuses everything, but to the data sets of nuclei it is background.
    assert headline(metric) == 0.0 if name == "pq-per-picture" else math.isnan(headline(metric))


@every
def test_both_empty_is_nan(name):
    metric = metric_of(name)
    metric.update(result(metric, np.zeros(SIZE), {}), annotation(np.zeros(SIZE), {}))
    assert math.isnan(headline(metric))


@every
def test_a_class_without_annotation_does_not_lower_the_others(name):
    metric = metric_of(name)
    metric.update(result(metric), annotation())
    rows = metric.compute()["per_class"]
    if name != "pq-per-picture":
        first = next(iter(rows["bus"]))
        assert math.isnan(rows["bus"][first]) and rows["car"][first] == pytest.approx(100)
    assert headline(metric) == pytest.approx(100)


@every
def test_one_class_alone(name):
    metric, one = metric_of(name, CATEGORIES[:1]), {1: 0}
    metric.update(result(metric, IDS_HW == 1, one, categories=CATEGORIES[:1]), annotation(IDS_HW == 1, one))
    assert headline(metric) == pytest.approx(100)


@every
def test_a_wrong_class_everywhere_is_0(name):
    metric = metric_of(name)
    metric.update(result(metric, labels={1: BUS, 2: BUS}), annotation())
    assert headline(metric) == 0.0


@every
def test_a_result_of_another_size_is_refused(name):
    metric = metric_of(name)
    metric.update(result(metric), annotation())
    refused(metric, result(metric, IDS_HW.T), annotation(), "10 x 12 pixels and its annotation 12 x 10")


@every
@pytest.mark.parametrize("label", [3, 200, -1])
def test_unknown_classes_are_refused(name, label):
    metric = metric_of(name)
    if metric.task != "semantic" or label >= 0:
        refused(metric, result(metric, labels={1: CAR, 2: label}), annotation(), f"class number {label} occurs")
    refused(metric, result(metric), annotation(labels={1: CAR, 2: label}), f"class number {label} ")


@classes_only
def test_negative_numbers_in_a_map_of_classes(name):
    metric = metric_of(name)
    found = SemanticMap(SIZE, CATEGORIES, np.full(SIZE, -7, np.int32))
    refused(metric, found, annotation(), "class number -7 occurs")
    refused(metric, result(metric), SemanticAnnotation(np.full(SIZE, -7, np.int32)), "class number -7 occurs")


@panoptic_only
@pytest.mark.parametrize("unknown", [9, -5, 2**31 - 1])
def test_ids_that_no_segment_has(name, unknown):
    metric, ids_HW = metric_of(name), np.where(IDS_HW == 2, unknown, IDS_HW)
    found = PanopticMap(SIZE, CATEGORIES, ids_HW, [Segment(1, CAR, 0.5, 1), Segment(2, PERSON, 0.5, 1)])
    refused(metric, found, annotation(), f"the id {unknown},")


@panoptic_only
def test_several_segments_of_one_id(name):
    metric = metric_of(name)
    twice = [Segment(1, CAR, 0.5, 1), Segment(2, PERSON, 0.5, 1), Segment(2, BUS, 0.5, 1)]
    refused(
        metric, PanopticMap(SIZE, CATEGORIES, IDS_HW, twice), annotation(), "result has several segments of the id 2"
    )
    doubled = PanopticAnnotation(IDS_HW, [AnnotatedSegment(1, CAR), AnnotatedSegment(1, BUS)])
    refused(metric, result(metric), doubled, "annotation has several segments of the id 1")


@panoptic_only
def test_scores_do_not_matter_to_maps(name):
    metric = metric_of(name)
    metric.update(result(metric, scores={1: math.nan, 2: math.inf}), annotation())
    assert headline(metric) == 100.0


@objects_only
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_cannot_be_ranked(name, score):
    metric = metric_of(name)
    refused(metric, result(metric, scores={2: score}), annotation(), f"the score {score}")


@objects_only
def test_masks_of_another_size(name):
    metric, found = metric_of(name), result(metric_of(name))
    small = coco_mask.encode(np.ones((3, 4), np.uint8, order="F"))
    found.rles[1] = small
    refused(metric, found, annotation(), "3 x 4 pixels and its image 12 x 10")
    true = InstanceAnnotation(SIZE, [AnnotatedObject(CAR, small)])
    refused(metric, result(metric), true, "3 x 4 pixels and its image 12 x 10")
    refused(metric, result(metric), InstanceAnnotation(SIZE, [AnnotatedObject(CAR, [])]), "neither polygons nor a mask")


@objects_only
def test_objects_without_pixels(name):
    metric = metric_of(name)
    metric.update(result(metric, labels={1: CAR, 2: PERSON, 7: BUS}), annotation(labels={1: CAR, 2: PERSON, 8: BUS}))
    assert headline(metric) == pytest.approx(200 / 3)  # nothing overlaps nothing: bus is missed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pq", InstanceAnnotation(SIZE, [])),
        ("pq-stuff", InstanceAnnotation(SIZE, [])),
        ("miou", InstanceAnnotation(SIZE, [])),
        ("boundary-iou", InstanceAnnotation(SIZE, [])),
        ("ap", SemanticAnnotation(np.zeros(SIZE, np.uint8))),
        ("boundary-ap", SemanticAnnotation(np.zeros(SIZE, np.uint8))),
        ("pq-per-picture", SemanticAnnotation(np.zeros(SIZE, np.uint8))),
    ],
)
def test_annotations_of_another_kind(name, kind):
    metric = metric_of(name)
    refused(metric, result(metric), kind, type(kind).__name__, ConfigError)

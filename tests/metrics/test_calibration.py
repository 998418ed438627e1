"""Calibration of scores: figures by hand, parts that add up exactly, and an honest set of scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.metrics.average_precision import AveragePrecision
from m2f_cli.metrics.calibration import InstanceCalibration, PanopticCalibration
from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.results.types import Instances, PanopticMap, Segment
from m2f_cli.structures.annotations import AnnotatedObject, AnnotatedSegment, InstanceAnnotation, PanopticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = (Category(1, "cat", True, (255, 0, 0)), Category(2, "dog", True, (0, 255, 0)))
CAT, DOG = range(2)


def panoptic(ids, segments: dict[int, tuple[int, float]]) -> PanopticMap:
    ids_HW = np.array([ids], np.int32)
    return PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, [Segment(i, c, s, 1) for i, (c, s) in segments.items()])


def true(ids, labels: dict[int, int], crowds=()) -> PanopticAnnotation:
    return PanopticAnnotation(
        np.array([ids], np.int32), [AnnotatedSegment(i, c, i in crowds) for i, c in labels.items()]
    )


ANNOTATION = true([1, 1, 2, 2, 0, 0], {1: CAT, 2: DOG})


def test_reliability_by_hand():
    metric = PanopticCalibration(CATEGORIES)
    # Ids out of order, one segment without pixels, one on void: neither counts.
    metric.update(
        panoptic([9, 9, 4, 4, 5, 5], {9: (CAT, 0.9), 4: (CAT, 0.7), 7: (DOG, 0.1), 5: (DOG, 0.2)}), ANNOTATION
    )
    figures = metric.compute()
    assert figures["ece"] == pytest.approx((abs(90 - 100) + abs(70 - 0)) / 2)
    assert figures["mean_score"] == pytest.approx(80) and figures["precision"] == 50
    rows = {row["from"]: row for row in figures["tables"]["reliability"]}
    assert [rows[start]["count"] for start in (0.7, 0.9)] == [1, 1] and sum(row["count"] for row in rows.values()) == 2
    assert rows[0.7]["precision"] == 0 and rows[0.9]["precision"] == 100
    assert figures["per_class"]["cat"]["count"] == 2 and math.isnan(figures["per_class"]["dog"]["ece"])


def test_the_last_range_holds_a_score_of_1_and_bins_can_be_finer():
    metric = PanopticCalibration(CATEGORIES, bins=20)
    metric.update(panoptic([9, 9, 4, 4, 0, 0], {9: (CAT, 1.0), 4: (DOG, 0.0)}), ANNOTATION)
    rows = metric.compute()["tables"]["reliability"]
    assert len(rows) == 20 and rows[-1]["count"] == rows[0]["count"] == 1
    with pytest.raises(ConfigError, match="bins = 7"):
        PanopticCalibration(CATEGORIES, bins=7)


def random_images(count: int, seed: int = 0):
    """Images of ten pixels for each of five objects, found or not; scores are the chances of being found."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = np.repeat(np.arange(1, 6), 10)
        labels = {i: int(rng.integers(0, 2)) for i in range(1, 6)}
        scores = {i: float(rng.uniform(0, 1)) for i in labels}
        found = {i: (labels[i] if rng.random() < scores[i] else 1 - labels[i], scores[i]) for i in labels}
        yield panoptic(ids, found), true(ids, labels)


def test_honest_scores_are_calibrated_and_boastful_ones_are_not():
    honest, boastful = PanopticCalibration(CATEGORIES), PanopticCalibration(CATEGORIES)
    for result, annotation in random_images(400):
        honest.update(result, annotation)
        for each in result.segments:
            each.score = 0.5 + each.score / 2
        boastful.update(result, annotation)
    assert honest.compute()["ece"] < 5 and boastful.compute()["ece"] == pytest.approx(25, abs=4)


def test_the_estimate_of_the_object_threshold_is_pq_without_the_lower_segments():
    metric, images = PanopticCalibration(CATEGORIES), list(random_images(30))
    for result, annotation in images:
        metric.update(result, annotation)
    found = metric.compute()["tables"]["object_threshold"]
    for threshold in (0.0, 0.25, 0.6):
        pq = PanopticQuality(CATEGORIES)
        for result, annotation in images:
            kept = [each for each in result.segments if each.score >= threshold]
            ids_HW = np.where(np.isin(result.ids_HW, [each.id for each in kept]), result.ids_HW, 0)
            pq.update(PanopticMap(result.size, CATEGORIES, ids_HW, kept), annotation)
        [row] = [row for row in found["curve"] if row["threshold"] == threshold]
        assert row["pq"] == pytest.approx(pq.compute()["pq"], abs=1e-9)
    assert found["best"]["pq"] == max(row["pq"] for row in found["curve"]) > found["now"]["pq"]
    assert found["best"]["threshold"] > 0 and "another" in found["caution"]


def instances(masks, labels, scores) -> Instances:
    rles = [coco_mask.encode(np.asfortranarray([mask], np.uint8)) for mask in masks]
    return Instances((1, 8), CATEGORIES, np.array(labels, np.int64), np.array(scores), rles)


def box(start: int, stop: int) -> list[int]:
    return [int(start <= x < stop) for x in range(8)]


def objects(*given) -> InstanceAnnotation:
    made = [
        AnnotatedObject(label, coco_mask.encode(np.asfortranarray([mask], np.uint8)), crowd)
        for mask, label, crowd in given
    ]
    return InstanceAnnotation((1, 8), made)


def test_objects_are_matched_as_coco_does_it():
    metric = InstanceCalibration(CATEGORIES)
    annotation = objects((box(0, 4), CAT, False), (box(4, 8), DOG, True))
    result = instances(
        [box(0, 4), box(0, 3), box(0, 2), box(5, 7), box(0, 4)], [CAT, CAT, CAT, DOG, DOG], [0.9, 0.95, 0.05, 0.8, 0.7]
    )
    metric.update(result, annotation)
    # The cat of 0.95 takes the true one (IoU 0.75), those of 0.9 and 0.05 come too late; a dog lies on the crowd.
    rows = {row["from"]: row for row in metric.compute()["tables"]["reliability"] if row["count"]}
    assert {start: (row["count"], row["precision"]) for start, row in rows.items()} == {
        0.0: (1, 0.0),
        0.7: (1, 0.0),
        0.9: (2, 50.0),
    }
    ap = AveragePrecision(CATEGORIES)
    ap.update(result, annotation)
    assert ap.compute()["ap50"] == pytest.approx(100)


@pytest.mark.parametrize("name", ["calibration", "calibration-instance"])
def test_parts_saved_and_merged_give_the_same(name):
    whole = plugins.get("metrics", name)(CATEGORIES)
    restored, merged = whole.fresh(), whole.fresh()
    rng = np.random.default_rng(0)
    for result, annotation in random_images(6):
        if name == "calibration-instance":
            result = instances([box(0, rng.integers(1, 5)), box(4, 8)], rng.integers(0, 2, 2), rng.random(2))
            annotation = objects((box(0, 4), CAT, False), (box(4, 8), DOG, bool(rng.random() < 0.3)))
        part = whole.fresh()
        part.update(result, annotation)
        whole.update(result, annotation)
        merged.merge(part)
        restored.restore(json.loads(json.dumps(part.state())))
    assert json.dumps(whole.compute()) == json.dumps(merged.compute()) == json.dumps(restored.compute())
    assert whole.compute()["precision"] > 0
    for damage in (None, {}, {"scored": [[0, 100, 1, 1, 1, 1]], "true": []}, {"scored": [], "true": [[5, 1]]}):
        with pytest.raises(DataError, match="damaged"):
            whole.restore(damage)


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_impossible_scores_are_refused_and_add_nothing(score):
    metric = PanopticCalibration(CATEGORIES)
    with pytest.raises(DataError, match="from 0 to 1"):
        metric.update(panoptic([9, 9, 4, 4, 0, 0], {9: (CAT, score), 4: (CAT, 0.7)}), ANNOTATION)
    assert metric.state() == {"scored": [], "true": []}
    other = InstanceCalibration(CATEGORIES)
    with pytest.raises(DataError, match="from 0 to 1"):
        other.update(instances([box(0, 4)], [CAT], [score]), objects())


def test_nothing_at_all():
    for metric in (PanopticCalibration(CATEGORIES), InstanceCalibration(CATEGORIES)):
        figures = metric.compute()
        assert all(math.isnan(figures[name]) for name in ("ece", "mean_score", "precision"))
    metric = InstanceCalibration(CATEGORIES)
    metric.update(instances([], [], []), objects((box(0, 4), CAT, False)))
    assert math.isnan(metric.compute()["ece"])

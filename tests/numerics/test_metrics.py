"""Metrics at extreme sizes and scores, and in any order of the images."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from metrics.test_bad_input import CATEGORIES, HEADLINES, NAMES, annotation, metric_of, result

SUMS_OF_FLOATS = ("pq", "pq-stuff")  # IoU is added up in the order of the images, as by the official tool
SORTED = ("ap", "boundary-ap")  # of equal scores, the first image counts
IN_ANY_ORDER = [name for name in NAMES if name not in SUMS_OF_FLOATS + SORTED]


def image(seed: int, shape=(9, 12)) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Annotation, prediction and distinct scores."""
    generator = np.random.default_rng(seed)
    ids_HW = np.kron(generator.integers(0, 3, (3, 3)), np.ones((shape[0] // 3, shape[1] // 3), int))
    found_HW = np.where(generator.random(ids_HW.shape) < 0.2, generator.integers(0, 3, ids_HW.shape), ids_HW)
    return ids_HW, found_HW, {1: 0.1 + seed / 100, 2: 0.105 + seed / 100}


def add(metric, seed: int) -> None:
    ids_HW, found_HW, scores = image(seed)
    labels = {1: 0, 2: 1}
    present = {i: label for i, label in labels.items() if (found_HW == i).any()}
    true = {i: label for i, label in labels.items() if (ids_HW == i).any()}
    metric.update(result(metric, found_HW, present, scores), annotation(ids_HW, true))


def in_two_orders(name: str):
    """Two metrics that saw the same twelve images, the second in another order."""
    metric, shuffled, seeds = metric_of(name), metric_of(name), list(range(12))
    for seed in seeds:
        add(metric, seed)
    random.Random(0).shuffle(seeds)
    for seed in seeds:
        add(shuffled, seed)
    return metric, shuffled


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_pixel(name):
    metric = metric_of(name)
    one = np.ones((1, 1), int)
    metric.update(result(metric, one, {1: 0}), annotation(one, {1: 0}))
    assert metric.compute()[HEADLINES[name]] == pytest.approx(100)


@pytest.mark.parametrize("name", ["pq", "miou", "ap"])
def test_more_pixels_than_32_bits_count(name):
    """70 images of 2^25 pixels are more than 2^31. Each image after the first comes from the state of the first."""
    metric, first = metric_of(name), metric_of(name)
    whole = np.ones((2**12, 2**13), np.uint8)
    first.update(result(first, whole, {1: 0}), annotation(whole, {1: 0}))
    for _ in range(70):
        metric.restore(json.loads(json.dumps(first.state())))
    assert metric.compute()[HEADLINES[name]] == pytest.approx(100)


@pytest.mark.parametrize("scores", [(0.0, 0.0), (1.0, 1.0), (1e-38, 1e-38), (1.0, 1e-38)])
@pytest.mark.parametrize("name", ["ap", "boundary-ap"])
def test_scores_at_the_ends_of_their_range(name, scores):
    metric = metric_of(name)
    metric.update(result(metric, scores=dict(zip((1, 2), scores, strict=True))), annotation())
    assert metric.compute()[HEADLINES[name]] == pytest.approx(100)


@pytest.mark.parametrize("name", IN_ANY_ORDER)
def test_the_order_of_images_changes_no_bit(name):
    metric, shuffled = in_two_orders(name)
    # json keeps NaN and every bit of a number.
    assert json.dumps(shuffled.compute(), sort_keys=True) == json.dumps(metric.compute(), sort_keys=True)


@pytest.mark.parametrize("name", SUMS_OF_FLOATS + SORTED)
def test_the_order_of_images_matters_to_the_last_digit_alone(name):
    """Scores are distinct here. Sums of 12 numbers lose one unit in the last place each at most."""
    metric, shuffled = in_two_orders(name)
    assert shuffled.compute()[HEADLINES[name]] == pytest.approx(metric.compute()[HEADLINES[name]], rel=12 * 2**-52)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_annotations_changes_no_figure(name):
    metric, alone = metric_of(name), metric_of(name)
    everything = np.arange(1, len(CATEGORIES) + 1).reshape(1, -1).repeat(9, 0).repeat(9, 1)
    labels = {i + 1: i for i in range(len(CATEGORIES))}
    for each in (metric, alone):
        each.update(result(each, everything, labels), annotation(everything, labels))
    if name != "pq-per-picture":  # an image without annotations is an image of its own there
        metric.update(result(metric, np.zeros((9, 9)), {}), annotation(np.zeros((9, 9)), {}))
    assert metric.compute()[HEADLINES[name]] == alone.compute()[HEADLINES[name]] == pytest.approx(100)

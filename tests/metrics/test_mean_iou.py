"""mIoU against counting pixels by class, and by hand."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.metrics.comparable import semantic_annotation
from m2f_cli.metrics.mean_iou import MeanIoU
from m2f_cli.results.types import SemanticMap
from m2f_cli.structures.annotations import InstanceAnnotation, SemanticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = tuple(Category(i, name, False, (i, i, i)) for i, name in enumerate(["sky", "grass", "water", "sand"]))
SKY, GRASS, WATER, SAND = range(4)
NAMES = ("miou", "miou_union", "fwiou", "macc", "pacc")


def of(images, ignore=255) -> MeanIoU:
    metric = MeanIoU(CATEGORIES)
    for found_HW, true_HW in images:
        metric.update(SemanticMap(found_HW.shape, CATEGORIES, found_HW), SemanticAnnotation(true_HW, ignore))
    return metric


def oracle(images, ignore=255) -> dict[str, float]:
    """Mask by mask over all pixels of all images."""
    found = np.concatenate([f.ravel() for f, _ in images]).astype(int)
    true = np.concatenate([t.ravel() for _, t in images]).astype(int)
    found, true = found[true != ignore], true[true != ignore]
    iou, acc, weight, seen = [], [], [], 0
    for label in range(4):
        f, t = found == label, true == label
        seen += (f | t).any()
        if t.any():
            iou.append((f & t).sum() / (f | t).sum())
            acc.append((f & t).sum() / t.sum())
            weight.append(t.sum() / len(true))
    values = (np.mean(iou), np.sum(iou) / seen, np.dot(iou, weight), np.mean(acc), (found == true).mean())
    return {name: 100 * value for name, value in zip(NAMES, values, strict=True)}


def random_images(seed: int, ignore: int, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 4))):
        true = rng.integers(0, rng.integers(1, 5), (5, 6)).astype(dtype)
        found = np.where(rng.random(true.shape) < 0.6, true, rng.integers(0, 4, true.shape)).astype(dtype)
        true[rng.random(true.shape) < 0.2] = ignore
        true[0, 0] = SKY
        yield found, true


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(255, np.uint8), (65535, np.uint16), (4, np.int32)]))
def test_equal_to_the_oracle(seed, kind):
    ignore, dtype = kind
    images = list(random_images(seed, ignore, dtype))
    figures, expected = of(images, ignore).compute(), oracle(images, ignore)
    assert {name: figures[name] for name in NAMES} == pytest.approx(expected, abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_parts_merge_to_the_whole(seed):
    images = [*random_images(seed, 255), *random_images(seed + 1, 255)]
    whole = pickle.loads(pickle.dumps(of(images[:1])))
    whole.merge(pickle.loads(pickle.dumps(of(images[1:]))))
    assert str(whole.compute()) == str(of(images).compute())


def test_by_hand_with_both_averages():
    true = np.array([[SKY, SKY, SKY, SKY, GRASS, GRASS, 255, 255]], np.uint8)
    found = np.array([[SKY, SKY, SKY, WATER, GRASS, GRASS, SAND, GRASS]], np.uint8)
    figures = of([(found, true)]).compute()
    assert figures["miou"] == pytest.approx(100 * (3 / 4 + 1) / 2)  # sky, grass
    assert figures["miou_union"] == pytest.approx(100 * (3 / 4 + 1 + 0) / 3)  # and water; sand lies on ignored pixels
    assert figures["fwiou"] == pytest.approx(100 * (3 / 4 * 4 / 6 + 1 * 2 / 6))
    assert figures["macc"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert figures["pacc"] == pytest.approx(100 * 5 / 6)
    table = figures["per_class"]
    assert table["sky"] == {"iou": 75.0, "acc": 75.0} and table["grass"] == {"iou": 100.0, "acc": 100.0}
    assert all(math.isnan(value) for name in ("water", "sand") for value in table[name].values())
    confusion = figures["tables"]["confusion"]
    assert confusion["classes"] == ["sky", "grass", "water", "sand"]
    assert confusion["pixels"] == [[0, 0, 3], [0, 2, 1], [1, 1, 2]]


@pytest.mark.parametrize(("none", "dtype"), [(255, np.uint8), (65535, np.uint16)])
def test_a_pixel_without_a_class_is_a_miss(none, dtype):
    true, found = np.array([[SKY, SKY, GRASS, GRASS]], dtype), np.array([[SKY, none, GRASS, GRASS]], dtype)
    figures = of([(found, true)]).compute()
    assert figures["per_class"]["sky"]["iou"] == 50.0 and figures["pacc"] == 75.0
    assert figures["miou"] == figures["miou_union"] == 75.0


@pytest.mark.parametrize("images", [[], [(np.zeros((1, 2), np.uint8), np.full((1, 2), 255, np.uint8))]])
def test_nothing_seen_is_nan(images):
    figures = of(images).compute()
    assert all(math.isnan(figures[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("true", "says"),
    [
        (np.array([[0, 9]], np.uint8), "class number 9 occurs, but there are 4"),
        (np.array([[0, -2]], np.int32), "class number -2 occurs"),
        (np.array([[0], [0]], np.uint8), "1 x 2 pixels and its annotation 2 x 1"),
    ],
)
def test_what_does_not_fit_is_said_and_not_counted(true, says):
    metric = MeanIoU(CATEGORIES)
    with pytest.raises(DataError, match=says):
        metric.update(SemanticMap((1, 2), CATEGORIES, np.zeros((1, 2), np.uint8)), SemanticAnnotation(true))
    assert not metric.confusion.any()


def test_objects_have_no_miou():
    result = SemanticMap((1, 1), CATEGORIES, np.zeros((1, 1), np.uint8))
    with pytest.raises(ConfigError, match="InstanceAnnotation"):
        MeanIoU(CATEGORIES).update(result, InstanceAnnotation((1, 1), []))


def test_panoptic_annotation_against_itself_is_100(annotated):
    metric = MeanIoU(annotated.categories)
    for annotation in annotated.annotations:
        labels_HW = semantic_annotation(annotation, annotated.categories).labels_HW
        metric.update(SemanticMap(annotation.size, annotated.categories, labels_HW), annotation)
    figures = metric.compute()
    assert [figures[name] for name in NAMES] == pytest.approx([100.0] * 5)

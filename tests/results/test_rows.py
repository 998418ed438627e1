"""Rows of tables: a result becomes plain values, and these become the same result again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, instances, panoptic, scene_labels, semantic
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from m2f_cli.errors import DataError
from m2f_cli.results.rows import LISTS, checked, id_map, result_of, row_of
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.categories import from_names

LABELS = scene_labels(48, 64)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def again(result):
    """The result that is made of its row, which goes through JSON, as a journal stores it."""
    row = json.loads(json.dumps(row_of(result, "a/b", "in/b.png")))
    return result_of(checked(row), result.categories)


def assert_equal(one, other):
    assert type(one) is type(other) and one.size == other.size and one.categories == other.categories
    for name in ("ids_HW", "labels_HW", "labels_N", "scores_N"):
        if hasattr(one, name):
            mine, others = getattr(one, name), getattr(other, name)
            assert mine.dtype == others.dtype and np.array_equal(mine, others)
    for name in ("segments", "rles"):
        assert getattr(one, name, None) == getattr(other, name, None)


def test_a_row_says_what_was_found_and_where():
    row = row_of(panoptic(LABELS), "a/b", "in/b.png")
    assert (row["id"], row["uri"], row["width"], row["height"], row["task"]) == ("a/b", "in/b.png", 64, 48, "panoptic")
    assert row["segment_id"] == [1, 2, 3] and row["label"] == ["sky", "grass", "person"]
    assert row["category_id"] == [187, 193, 1] and row["isthing"] == [False, False, True]
    assert row["score"] == [0.9, 0.8, 0.7] and row["bbox"][2] == [24, 18, 16, 12] and row["area"][2] == 16 * 12
    masks_HWN = coco_mask.decode([{"size": [48, 64], "counts": counts} for counts in row["counts"]])
    assert np.array_equal(masks_HWN.argmax(2), LABELS) and (masks_HWN.sum(2) == 1).all()


@pytest.mark.parametrize("make", [panoptic, instances, semantic])
def test_a_row_gives_the_result_back(make):
    result = make(LABELS)
    assert_equal(again(result), result)


@given(SHAPES.flatmap(lambda shape: arrays(np.int32, shape, elements=st.sampled_from([0, 1, 7, 2**24 - 1]))))
def test_every_panoptic_map_comes_back(ids_HW):
    ids = [1, 7, 2**24 - 1, 12]  # the last one has no pixels
    segments = [Segment(key, i % 3, 1 / (3 + i), int((ids_HW == key).sum())) for i, key in enumerate(ids)]
    result = PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, segments)
    assert_equal(again(result), result)
    assert np.array_equal(id_map(row_of(result, "a", "a")), ids_HW)


@pytest.mark.parametrize(("count", "kind", "void"), [(3, np.uint8, 255), (254, np.uint8, 255), (300, np.uint16, 65535)])
def test_every_semantic_map_comes_back(count, kind, void):
    draw = np.random.default_rng(count)
    labels_HW = draw.integers(0, count, (17, 23)).astype(kind)
    labels_HW[draw.random((17, 23)) < 0.2] = void
    result = SemanticMap((17, 23), from_names([f"class {i}" for i in range(count)]), labels_HW)
    assert_equal(again(result), result)
    assert set(row_of(result, "a", "a")["score"]) == {None}


@given(st.integers(0, 4), SHAPES, st.randoms(use_true_random=False))
def test_every_set_of_objects_comes_back(count, size, draw):
    masks_NHW = np.array([[[draw.random() < 0.5 for _ in range(size[1])] for _ in range(size[0])]] * count, bool)
    rles = [coco_mask.encode(np.asfortranarray(mask_HW, np.uint8)) for mask_HW in masks_NHW]
    scores_N = np.array([draw.random() for _ in range(count)], np.float32)
    result = Instances(size, CATEGORIES, np.array([i % 3 for i in range(count)], np.int64), scores_N, rles)
    assert_equal(again(result), result)


def test_where_objects_overlap_the_best_is_on_top_of_the_map():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, 1:3, 1:3], masks[1, :3, :3] = 1, 1
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    result = Instances((4, 4), CATEGORIES, np.array([2, 2]), np.array([0.9, 0.5], np.float32), rles)
    assert id_map(row_of(result, "a", "a")).tolist() == [[2, 2, 2, 0], [2, 1, 1, 0], [2, 1, 1, 0], [0, 0, 0, 0]]


def test_a_class_that_the_model_does_not_have_is_named():
    with pytest.raises(DataError, match="class id 1"):
        result_of(row_of(panoptic(LABELS), "a", "a"), CATEGORIES[:2])


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 10**6, "height": 10**6},
        {"task": "depth"},
        {"area": [1]},
        {"bbox": [[0, 0, 1]] * 3},
        {"counts": None},
        {"score": [10**30, 0.5, 0.5]},
        *({key: "x"} for key in LISTS),
    ],
)
def test_what_is_no_row_is_refused(change):
    with pytest.raises(ValueError, match="no row"):
        checked({**row_of(panoptic(LABELS), "a", "a"), **change})

"""Results in the formats of others, checked with the others' own tools."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, instances, panoptic, scene_labels, semantic
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask
from scipy import ndimage

from m2f_cli.errors import MissingDependency
from m2f_cli.results.regions import windows_of
from m2f_cli.results.types import Instances, PanopticMap, Segment

LABELS = scene_labels(48, 64)
BOX = [24, 18, 16, 12]  # of the person: x, y, width, height


@pytest.mark.parametrize("make", [panoptic, semantic])
def test_regions_tile_the_image(make):
    covered = np.zeros(LABELS.shape, int)
    for region in make(LABELS).regions():
        assert np.array_equal(region.full_mask(LABELS.shape), region.label == LABELS)
        covered[region.window] += region.mask_HW
    assert (covered == 1).all()


def test_regions_of_large_ids_and_void():
    """Ids of a data set's own annotations go up to 2^24; ids that no segment has belong to nobody."""
    ids_HW = np.zeros((5, 6), np.int32)
    ids_HW[1:3, 2:5], ids_HW[4, 0] = 16_777_215, 9
    result = PanopticMap((5, 6), CATEGORIES, ids_HW, [Segment(16_777_215, PERSON, 0.5, 6), Segment(77, SKY, 0.5, 0)])
    (region,) = result.regions()
    assert (region.id, region.box, region.area) == (16_777_215, (1, 2, 3, 5), 6)


@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-2, 4)))
def test_windows_are_those_of_scipy(map_HW):
    found = ndimage.find_objects(map_HW + 3)
    assert windows_of(map_HW) == {value - 2: window for value, window in enumerate(found) if window is not None}


def test_empty_results_have_no_regions():
    nothing = Instances((5, 6), CATEGORIES, np.zeros(0, int), np.zeros(0), [])
    assert not list(nothing.regions()) and not nothing.to_coco() and not nothing.to_hf()
    assert list(PanopticMap((5, 6), CATEGORIES, np.zeros((5, 6), np.int32), []).regions()) == []
    assert len(nothing.to_supervision()) == 0


def test_panoptic_to_coco():
    result = panoptic(LABELS)
    result.segments.append(Segment(9, SKY, 0.9, 0))
    records = json.loads(json.dumps(result.to_coco()))["segments_info"]
    assert [record["category_id"] for record in records] == [187, 193, 1]
    assert [record["area"] for record in records] == np.bincount(LABELS.ravel()).tolist()
    assert records[2] == {"id": 3, "category_id": 1, "area": 192, "bbox": BOX, "iscrowd": 0, "score": 0.7}
    assert {record["id"] for record in records} == set(np.unique(result.ids_HW))


def test_instances_to_coco_is_read_by_pycocotools():
    (record,) = json.loads(json.dumps(instances(LABELS).to_coco()))
    assert (record["category_id"], record["bbox"], record["score"]) == (1, BOX, 0.875)
    assert np.array_equal(coco_mask.decode(record["segmentation"]), LABELS == PERSON)


def test_semantic_to_coco_leaves_void_out():
    labels_HW = LABELS.copy()
    labels_HW[labels_HW == SKY] = 255
    records = json.loads(json.dumps(semantic(labels_HW).to_coco()))
    assert [record["category_id"] for record in records] == [193, 1]
    assert np.array_equal(coco_mask.decode(records[0]["segmentation"]), labels_HW == GRASS)


@pytest.mark.parametrize(
    ("make", "scores", "labels"),
    [
        (panoptic, [0.9, 0.8, 0.7], ["sky", "grass", "person"]),
        (semantic, [None] * 3, ["sky", "grass", "person"]),
        (instances, [0.875], ["person"]),
    ],
)
def test_to_hf_has_the_form_of_the_pipeline(make, scores, labels):
    records = make(LABELS).to_hf()
    assert [record["label"] for record in records] == labels
    assert [record["score"] for record in records] == pytest.approx(scores)
    mask = records[-1]["mask"]
    assert mask.mode == "L" and np.array_equal(np.asarray(mask), np.where(LABELS == PERSON, 255, 0))


@pytest.mark.parametrize("make", [panoptic, semantic, instances])
def test_detections_of_supervision_have_masks_and_names(make):
    found = make(LABELS).to_supervision()
    assert found.class_id.tolist()[-1] == PERSON and found.data["class_name"].tolist()[-1] == "person"
    assert np.array_equal(found.mask[-1], LABELS == PERSON)
    assert found.xyxy[-1].tolist() == [24, 18, 39, 29]
    assert (found.confidence is None) == (make is semantic)


def test_supervision_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependency, match=r"m2f-cli\[supervision\]"):
        semantic(LABELS).to_supervision()


def test_backwards_turns_instances_round_and_nothing_else():
    pair = instances(LABELS)
    pair.labels_N, pair.scores_N, pair.rles = np.array([2, 0]), np.array([0.9, 0.1]), pair.rles * 2
    assert [region.label for region in pair.backwards().regions()] == [0, 2]
    result = panoptic(LABELS)
    assert result.backwards() is result

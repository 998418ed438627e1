"""Targets: what is one, what is kept although it is empty, and which annotation trains which task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from m2f_cli.data.build_targets import require_trains, to_target
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
    as_semantic,
)
from m2f_cli.structures.categories import Category

CATEGORIES = tuple(Category(10 * i, f"c{i}", i < 3, (i, i, i)) for i in range(6))  # 0, 1, 2 are things

IDS = np.array([[70000, 70000, 9, 9], [0, 33001, 9, 5], [0, 33001, 8, 4]], dtype=np.int32)
PANOPTIC = PanopticAnnotation(
    IDS,
    [
        AnnotatedSegment(70000, 1),
        AnnotatedSegment(9, 4),
        AnnotatedSegment(33001, 1),
        AnnotatedSegment(5, 2, iscrowd=True),
        AnnotatedSegment(77, 0),
        AnnotatedSegment(8, 4),
    ],
)  # no segment has the id 4; 77 has no pixel


def test_a_panoptic_annotation_becomes_a_map_of_owners():
    target = to_target(PANOPTIC, "panoptic", CATEGORIES)
    assert target.labels_N.tolist() == [1, 4, 1, 0, 4] and target.labels_N.dtype == torch.int64
    assert target.owner_HW.tolist() == [[0, 0, 1, 1], [-1, 2, 1, -1], [-1, 2, 4, -1]]
    assert target.owner_HW.dtype == torch.int16
    assert target.masks().sum((1, 2)).tolist() == [2, 3, 2, 0, 1]  # the vanished segment is kept


def test_instances_of_a_panoptic_annotation_are_its_things():
    target = to_target(PANOPTIC, "instance", CATEGORIES)
    assert target.labels_N.tolist() == [1, 1, 0]
    assert target.owner_HW.tolist() == [[0, 0, -1, -1], [-1, 1, -1, -1], [-1, 1, -1, -1]]


def test_semantics_of_a_panoptic_annotation_include_crowds():
    assert as_semantic(PANOPTIC, 6).labels_HW.tolist() == [[1, 1, 4, 4], [255, 1, 4, 2], [255, 1, 4, 255]]
    target = to_target(PANOPTIC, "semantic", CATEGORIES)
    assert target.labels_N.tolist() == [1, 2, 4]
    assert target.owner_HW.tolist() == [[0, 0, 2, 2], [-1, 0, 2, 1], [-1, 0, 2, -1]]


@pytest.mark.parametrize(("dtype", "ignore"), [(np.uint8, 255), (np.uint16, 65535), (np.int32, -1), (np.uint8, 5)])
def test_a_semantic_annotation_has_a_target_per_class(dtype, ignore):
    labels = np.array([[3, 3, ignore], [0, 4, 0]]).astype(dtype)
    target = to_target(SemanticAnnotation(labels, ignore), "semantic", CATEGORIES)
    assert target.labels_N.tolist() == [0, 3, 4]
    assert target.owner_HW.tolist() == [[1, 1, -1], [0, 2, 0]]


@pytest.mark.parametrize(
    ("annotation", "task"),
    [
        (SemanticAnnotation(np.full((3, 4), 255, np.uint8)), "semantic"),
        (PanopticAnnotation(np.zeros((3, 4), np.int32), []), "panoptic"),
        (PanopticAnnotation(np.zeros((3, 4), np.int32), []), "semantic"),
        (InstanceAnnotation((3, 4), []), "instance"),
    ],
)
def test_nothing_annotated_is_an_empty_target(annotation, task):
    target = to_target(annotation, task, CATEGORIES)
    assert len(target) == 0 and target.labels_N.dtype == torch.int64
    assert target.size == (3, 4) and tuple(target.masks().shape) == (0, 3, 4)


def test_objects_become_masks_without_crowds_and_empty_ones():
    square = np.array([(1, 0), (3, 0), (3, 2), (1, 2)], dtype=float)
    two = [square, square + np.array([3, 2])]
    mask = np.zeros((4, 6), np.uint8)
    mask[:, 2] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    objects = [
        AnnotatedObject(2, two),
        AnnotatedObject(0, rle),
        AnnotatedObject(1, rle, iscrowd=True),
        AnnotatedObject(5, []),
    ]
    target = to_target(InstanceAnnotation((4, 6), objects), "instance", CATEGORIES)
    assert target.labels_N.tolist() == [2, 0, 5]
    assert target.masks_NHW.dtype == torch.uint8 and target.owner_HW is None
    assert target.masks_NHW[0].tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(target.masks_NHW[1].numpy(), mask)  # it overlaps the first one
    assert target.masks_NHW[2].sum() == 0


def test_id_maps_against_one_comparison_per_segment():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (50, 60)).astype(np.int32)
    ids[10:30] = ids[10, 0]
    segments = [
        AnnotatedSegment(int(i), int(rng.integers(6)), bool(rng.random() < 0.2)) for i in rng.permutation(60)[:35]
    ]
    segments = [segment for segment in segments if segment.id]
    target = to_target(PanopticAnnotation(ids, segments), "panoptic", CATEGORIES)
    kept = [segment for segment in segments if not segment.iscrowd]
    masks = target.masks().numpy()
    assert target.labels_N.tolist() == [segment.label for segment in kept]
    for mask, segment in zip(masks, kept, strict=True):
        np.testing.assert_array_equal(mask, ids == segment.id)


@pytest.mark.parametrize(("count", "dtype"), [(32766, torch.int16), (32767, torch.int32)])
def test_many_targets_need_wider_numbers(count, dtype):
    ids = np.arange(1, count + 1, dtype=np.int32)[None]
    annotation = PanopticAnnotation(ids, [AnnotatedSegment(i, 0) for i in range(1, count + 1)])
    owners = to_target(annotation, "panoptic", CATEGORIES).owner_HW
    assert owners.dtype == dtype and owners[0].tolist() == list(range(count))


def test_what_trains_what():
    for annotated, tasks in {"panoptic": "pis", "instance": "i", "semantic": "s"}.items():
        for task in ("panoptic", "instance", "semantic"):
            if task[0] in tasks:
                require_trains(annotated, task)
                continue
            with pytest.raises(ConfigError, match=f"{annotated.capitalize()} annotations cannot train an? {task}"):
                require_trains(annotated, task)
    with pytest.raises(ConfigError, match="panoptic annotations"):
        to_target(InstanceAnnotation((2, 2), []), "panoptic", CATEGORIES)
    with pytest.raises(ConfigError, match="Semantic annotations cannot"):
        to_target(SemanticAnnotation(np.zeros((2, 2), np.uint8)), "instance", CATEGORIES)


@pytest.mark.parametrize(
    ("annotation", "task"),
    [
        (SemanticAnnotation(np.full((2, 2), 6, np.uint8)), "semantic"),
        (PanopticAnnotation(np.ones((2, 2), np.int32), [AnnotatedSegment(1, 6)]), "panoptic"),
        (PanopticAnnotation(np.ones((2, 2), np.int32), [AnnotatedSegment(1, 6)]), "instance"),
        (PanopticAnnotation(np.ones((2, 2), np.int32), [AnnotatedSegment(1, 6)]), "semantic"),
        (InstanceAnnotation((2, 2), [AnnotatedObject(6, [])]), "instance"),
    ],
)
def test_a_class_that_does_not_exist(annotation, task):
    with pytest.raises(DataError, match="class number 6, but there are 6 classes"):
        to_target(annotation, task, CATEGORIES)

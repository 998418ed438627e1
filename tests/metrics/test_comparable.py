"""Annotations as other annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.metrics.comparable import instance_annotation, panoptic_annotation, panoptic_result, semantic_annotation
from m2f_cli.results.types import Segment, SemanticMap
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from m2f_cli.structures.categories import Category
from m2f_cli.structures.rle import encode_shape

CATEGORIES = (Category(1, "person", True, (0, 0, 0)), Category(2, "sky", False, (0, 0, 0)))
PERSON, SKY = 0, 1
ANNOTATION = PanopticAnnotation(
    np.array([[70_000, 70_000, 3], [9, 0, 3]], np.int32),
    [AnnotatedSegment(3, SKY), AnnotatedSegment(70_000, PERSON), AnnotatedSegment(9, PERSON, True)],
)


def test_things_of_a_panoptic_annotation():
    objects = instance_annotation(ANNOTATION, CATEGORIES).objects
    assert [(each.label, each.iscrowd, each.area) for each in objects] == [(PERSON, False, None), (PERSON, True, None)]
    masks = [coco_mask.decode(each.shape).tolist() for each in objects]
    assert masks == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]


def test_classes_of_a_panoptic_annotation():
    annotation = semantic_annotation(ANNOTATION, CATEGORIES)
    assert annotation.labels_HW.tolist() == [[PERSON, PERSON, SKY], [PERSON, 255, SKY]] and annotation.ignore == 255
    assert annotation.labels_HW.dtype == np.uint8


def test_many_classes_need_two_bytes():
    annotation = semantic_annotation(
        PanopticAnnotation(np.array([[1, 0]]), [AnnotatedSegment(1, 299)]), CATEGORIES * 150
    )
    assert annotation.labels_HW.tolist() == [[299, 65535]] and annotation.ignore == 65535


def test_segments_of_semantic_maps():
    annotation = panoptic_annotation(SemanticAnnotation(np.array([[0, 1, 7]], np.uint8), ignore=7))
    assert annotation.ids_HW.tolist() == [[1, 2, 0]]
    assert annotation.segments == [AnnotatedSegment(1, 0), AnnotatedSegment(2, 1)]
    result = panoptic_result(SemanticMap((1, 3), CATEGORIES, np.array([[1, 255, 1]], np.uint8)))
    assert result.ids_HW.tolist() == [[2, 0, 2]] and result.segments == [Segment(2, 1, 1.0, 2)]


def test_the_right_kind_passes_through():
    semantic, instance = SemanticAnnotation(np.zeros((1, 1), np.uint8)), InstanceAnnotation((1, 1), [])
    assert semantic_annotation(semantic, CATEGORIES) is semantic
    assert instance_annotation(instance, CATEGORIES) is instance
    assert panoptic_annotation(ANNOTATION) is ANNOTATION
    with pytest.raises(ConfigError, match="SemanticAnnotation"):
        instance_annotation(semantic, CATEGORIES)


UNPACKED = {"size": [4, 6], "counts": [5, 2, 2, 2, 2, 2, 9]}


@pytest.mark.parametrize("convert", [instance_annotation, semantic_annotation])
def test_a_class_that_does_not_exist_is_an_error(convert):
    with pytest.raises(DataError, match="class number 300 occurs, but there are 2"):
        convert(PanopticAnnotation(np.array([[1]]), [AnnotatedSegment(1, 300)]), CATEGORIES)


@pytest.mark.parametrize(
    "shape",
    [
        [np.array([(1, 1), (4, 1), (4, 3), (1, 3)])],
        [np.array([(1, 1), (3, 1), (3, 3), (1, 3)]), np.array([(3, 1), (4, 1), (4, 3), (3, 3)])],
        UNPACKED,
        coco_mask.frPyObjects(UNPACKED, 4, 6),
    ],
    ids=["polygon", "polygons", "counts", "packed"],
)
def test_run_lengths_of_every_form(shape):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:4] = 1
    assert (coco_mask.decode(encode_shape(shape, (4, 6))) == mask).all()


def test_an_object_without_a_shape_is_an_error():
    with pytest.raises(DataError, match="class number 5"):
        instance_annotation(InstanceAnnotation((4, 6), [AnnotatedObject(5, [])]), CATEGORIES)


def test_real_panoptic_annotations_as_the_published_semantic_ones(coco):
    for name, annotation in zip(coco.names, coco.annotations, strict=True):
        expected = np.asarray(Image.open(coco.folder / "panoptic_semseg_val2017" / f"{name}.png"))
        assert (semantic_annotation(annotation, coco.categories).labels_HW == expected).all()


def test_real_panoptic_annotations_as_objects(coco):
    document = json.loads((coco.folder / "annotations" / "instances_val2017.json").read_text())
    for name, annotation in zip(coco.names, coco.annotations, strict=True):
        expected = [each for each in document["annotations"] if each["image_id"] == int(name)]
        objects = instance_annotation(annotation, coco.categories).objects
        assert sorted(
            (coco.categories[each.label].id, int(each.iscrowd), int(coco_mask.area(each.shape))) for each in objects
        ) == sorted((each["category_id"], each["iscrowd"], int(each["area"])) for each in expected)

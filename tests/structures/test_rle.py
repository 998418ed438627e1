"""COCO run lengths of masks, polygons, objects and id maps say the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from m2f_cli.structures.annotations import (
    AnnotatedSegment,
    PanopticAnnotation,
    SemanticAnnotation,
    as_panoptic,
    as_semantic,
)
from m2f_cli.structures.rle import (
    as_text,
    encode_counts,
    encode_ids,
    encode_mask,
    encode_polygons,
    encode_shape,
    runs_of,
)
from m2f_cli.structures.run_lengths import areas_in

MAPS = st.tuples(st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda size: arrays(np.int32, size, elements=st.integers(0, 3))
)
SQUARE = np.array([(1, 1), (4, 1), (4, 3), (1, 3)])


@given(MAPS)
def test_regions_of_an_id_map_are_those_of_its_masks(ids_HW):
    rles = encode_ids(ids_HW, range(5))
    assert rles == [encode_mask(ids_HW == i) for i in range(5)]
    assert [int(coco_mask.area(rle)) for rle in rles] == [areas_in(ids_HW).get(i, 0) for i in range(5)]


def pixels_of(rle):
    return [pixel for start, end in zip(*runs_of(rle), strict=True) for pixel in range(start, end)]


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 60))))
def test_pixels_of_run_lengths_are_those_of_the_mask(mask_HW):
    assert pixels_of(encode_mask(mask_HW)) == np.flatnonzero(mask_HW.T).tolist()


def test_pixels_of_long_and_of_falling_run_lengths():
    for counts in ([5], [0, 5], [100_000, 70_000, 3, 1, 90_000, 2], [0, 1, 2, 3, 2, 1, 1, 40, 1]):
        size = (1, sum(counts))
        mask_HW = coco_mask.decode(encode_counts(counts, size))
        assert pixels_of(as_text(encode_counts(counts, size))) == np.flatnonzero(mask_HW).tolist()


def test_polygons_of_fewer_than_three_points_cover_nothing():
    mask_HW = np.zeros((5, 6), np.uint8)
    mask_HW[1:3, 1:4] = 1
    assert (coco_mask.decode(encode_polygons([SQUARE, SQUARE[:2]], (5, 6))) == mask_HW).all()
    nothing = encode_polygons([SQUARE[:2]], (5, 6))
    assert nothing == encode_mask(np.zeros((5, 6)))


def test_run_lengths_of_an_object_keep_their_own_size():
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert encode_shape(plain, (9, 9)) == encode_counts([1, 2, 3], (2, 3))
    packed = encode_shape(plain, (2, 3))
    assert encode_shape(packed, (2, 3)) is packed
    assert as_text(packed) == {"size": [2, 3], "counts": packed["counts"].decode()}


@given(arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.sampled_from([0, 1, 5, 255])))
def test_a_semantic_annotation_survives_as_segments(labels_HW):
    panoptic = as_panoptic(SemanticAnnotation(labels_HW), separate=[1])
    assert (as_semantic(panoptic, 6).labels_HW == labels_HW).all()
    assert [s.id for s in panoptic.segments] == list(range(1, len(panoptic.segments) + 1))


def test_connected_regions_of_separate_classes_are_segments_of_their_own():
    labels_HW = np.array([[1, 0, 1, 2, 0, 2]], np.uint8)
    found = as_panoptic(SemanticAnnotation(labels_HW), separate=[1])
    assert found.ids_HW.tolist() == [[2, 1, 3, 4, 1, 4]]
    assert found.segments == [
        AnnotatedSegment(1, 0),
        AnnotatedSegment(2, 1),
        AnnotatedSegment(3, 1),
        AnnotatedSegment(4, 2),
    ]


def test_many_classes_take_16_bits():
    found = as_semantic(PanopticAnnotation(np.array([[7, 0]], np.int32), [AnnotatedSegment(7, 299)]), 300)
    assert found.labels_HW.dtype == np.uint16 and found.labels_HW.tolist() == [[299, 65535]]

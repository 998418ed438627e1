"""Masks become outlines whose pixels, by COCO's rule, are those of the mask, holes and parts included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from m2f_cli.dataset_tools.convert.labelme import shapes_of
from m2f_cli.dataset_tools.convert.outlines import joined, rle_outlines, same_pixels
from m2f_cli.dataset_tools.convert.yolo_seg import polygon_line
from m2f_cli.structures.annotations import AnnotatedObject
from m2f_cli.structures.rle import encode_polygons, encode_shape

SIZES = st.tuples(st.integers(1, 14), st.integers(1, 14))
MASKS = SIZES.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1)))


def encode(mask_HW):
    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


def pixels(polygons, size):
    return np.asarray(coco_mask.decode(encode_polygons(polygons, size)))


def ring():
    mask_HW = np.zeros((12, 16), np.uint8)
    mask_HW[2:10, 3:13] = 1
    mask_HW[4:7, 5:9] = 0
    mask_HW[5, 6] = 1  # an island in the hole
    return mask_HW


def test_an_outline_runs_along_the_edges_of_pixels():
    mask_HW = np.zeros((6, 9), np.uint8)
    mask_HW[1:4, 2:7] = 1
    (outer,), holes = rle_outlines(encode(mask_HW))
    assert holes == []
    assert sorted(map(tuple, outer.tolist())) == [(2, 1), (2, 4), (7, 1), (7, 4)]


def test_holes_and_islands():
    outer, holes = rle_outlines(encode(ring()))
    assert (len(outer), len(holes)) == (2, 1)
    # Filled without regard for holes, the outlines alone are more than the mask.
    assert pixels(outer, ring().shape).sum() == 80
    assert np.array_equal(pixels([joined([*outer, *holes])], ring().shape), ring())


def test_nothing_has_no_outline():
    assert rle_outlines(encode(np.zeros((3, 4)))) == ([], [])


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_one_path_with_seams_has_the_pixels_of_the_mask(mask_HW):
    outer, holes = rle_outlines(encode(mask_HW))
    if mask_HW.any():
        assert np.array_equal(pixels([joined([*outer, *holes])], mask_HW.shape), mask_HW)
    else:
        assert not outer
        assert not holes


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(1, 3000))
def test_a_line_of_yolo_read_back_has_the_same_pixels(mask_HW, wide):
    """Also far to the right in a wide image, where shares have few digits left."""
    wide_HW = np.zeros((mask_HW.shape[0], mask_HW.shape[1] + wide), np.uint8)
    wide_HW[:, wide:] = mask_HW
    line = polygon_line(AnnotatedObject(0, encode(wide_HW)), wide_HW.shape)
    if not mask_HW.any():
        assert line is None
        return
    shares_P2 = np.array([float(word) for word in line.split()]).reshape(-1, 2)
    assert 0 <= shares_P2.min() <= shares_P2.max() <= 1
    assert np.array_equal(pixels([shares_P2 * wide_HW.shape[::-1]], wide_HW.shape), wide_HW)


POINTS = st.lists(st.tuples(st.floats(-3, 33), st.floats(-3, 23)), min_size=3, max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_of_any_kind_keep_their_pixels(polygons):
    """Overlapping parts, crossings, and corners outside of the image, which YOLO's numbers cannot express."""
    item = AnnotatedObject(0, [np.array(points) for points in polygons])
    rle = encode_shape(item.shape, (20, 30))
    line = polygon_line(item, (20, 30))
    if line is None:
        assert not coco_mask.area(rle)
        return
    points_P2 = np.clip(np.array([float(word) for word in line.split()]).reshape(-1, 2), 0, 1) * (30, 20)
    assert same_pixels(encode_polygons([points_P2], (20, 30)), rle)


def test_polygons_of_yolo_stay_as_they_are_where_they_can():
    triangle_P2 = np.array([[3.3, 4.1], [15.2, 4.7], [9.9, 14.6]])
    line = polygon_line(AnnotatedObject(0, [triangle_P2]), (20, 30))
    assert np.allclose(np.array(line.split(), float).reshape(-1, 2) * (30, 20), triangle_P2, atol=1e-5)


def test_same_pixels_tells_masks_apart():
    one, other = ring(), ring()
    other[2, 3] = 0
    moved = np.roll(one, 1, axis=1)
    assert same_pixels(encode(one), encode(one))
    assert not same_pixels(encode(one), encode(other))
    assert not same_pixels(encode(one), encode(moved))  # as large, elsewhere


@pytest.mark.parametrize(
    ("mask_HW", "kinds"),
    [
        (ring(), ["mask"]),
        (np.pad(np.ones((2, 2)), 3), ["polygon"]),
        (np.hstack([np.pad(np.ones((2, 2)), 3)] * 2), ["polygon", "polygon"]),
    ],
)
def test_labelme_gets_masks_where_there_are_holes(mask_HW, kinds):
    assert [part["shape_type"] for part in shapes_of(AnnotatedObject(0, encode(mask_HW)), mask_HW.shape)] == kinds

"""Outlines enclose exactly the pixels of a mask, and every hole belongs to the region that it is in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m2f_cli.structures.contours import outlines

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))


def area(points_P2: np.ndarray) -> float:
    (x, y), (next_x, next_y) = points_P2.T, np.roll(points_P2, -1, axis=0).T
    return abs((x * next_y - next_x * y).sum()) / 2


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_outlines_less_holes_are_the_pixels(mask_HW):
    found = outlines(mask_HW)
    assert sum(area(outer) - sum(map(area, holes)) for outer, holes in found) == mask_HW.sum()
    for path in (path for outer, holes in found for path in (outer, *holes)):
        steps = np.roll(path, -1, axis=0) - path
        assert ((steps == 0).sum(axis=1) == 1).all(), "along the grid, and every point is a corner"


def test_a_hole_belongs_to_its_region():
    mask_HW = np.zeros((10, 20), dtype=np.uint8)
    mask_HW[1:8, 1:8], mask_HW[1:8, 11:18] = 1, 1
    mask_HW[3:5, 13:16] = 0
    by_left = {int(outer[:, 0].min()): [hole.tolist() for hole in holes] for outer, holes in outlines(mask_HW)}
    assert by_left[1] == [] and len(by_left[11]) == 1
    assert sorted(by_left[11][0]) == [[13, 3], [13, 5], [16, 3], [16, 5]]


@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
def test_an_empty_mask_has_none(size):
    assert outlines(np.zeros(size, dtype=bool)) == []

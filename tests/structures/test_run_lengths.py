"""Run lengths against counting pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from m2f_cli.structures.run_lengths import pair_counts, renamed, starts_of_runs

IDS = st.sampled_from([0, 1, 2, 7, 255, 65_536, 2**24 - 1, 2**31 - 1, -1, -(2**31)])
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7))


@given(st.data(), SHAPES)
def test_pair_counts_are_those_of_the_pixels(data, shape):
    first, second = (data.draw(arrays.arrays(np.int32, shape, elements=IDS)) for _ in range(2))
    expected = {}
    for pair in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
        expected[pair] = expected.get(pair, 0) + 1
    a, b, counts = (values.tolist() for values in pair_counts(first, second))
    pairs = list(zip(a, b, strict=True))
    assert dict(zip(pairs, counts, strict=True)) == expected
    assert pairs == sorted(pairs, key=lambda pair: (pair[0], pair[1] % 2**32)) and len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(("one", "two"), [(np.uint8, np.uint16), (np.int32, np.uint8)])
def test_pair_counts_of_different_types(one, two):
    first, second = np.array([[1, 1, 200]], one), np.array([[200, 1, 1]], two)
    assert [values.tolist() for values in pair_counts(first, second)] == [[1, 1, 200], [1, 200, 1], [1, 1, 1]]


def test_a_run_may_go_on_in_the_next_row():
    assert starts_of_runs(np.array([[5, 5], [5, 6]])).tolist() == [0, 3]
    assert starts_of_runs(np.array([[5, 5], [5, 6]]), np.array([[0, 1], [1, 1]])).tolist() == [0, 1, 3]


@given(st.data(), SHAPES)
def test_ids_are_renamed_by_a_table(data, shape):
    map_HW = data.draw(arrays.arrays(np.int32, shape, elements=IDS))
    names = {1: 3, 2**24 - 1: 0, 7: 254}
    new = renamed(map_HW, names, 255, np.uint8)
    assert new.dtype == np.uint8
    assert new.tolist() == [[names.get(value, 255) for value in row] for row in map_HW.tolist()]

"""Maps as run lengths: most neighbours have the same id, so there are far fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike


def starts_of_runs(*maps_HW: np.ndarray) -> np.ndarray:
    """Return the flat positions (int64, ascending, from 0 on) at which any of several maps of one size changes."""
    first, *others = (map_HW.ravel() for map_HW in maps_HW)
    changes = np.empty(first.size, dtype=bool)
    changes[:1] = True
    np.not_equal(first[1:], first[:-1], out=changes[1:])
    for values in others:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def pair_counts(first_HW: np.ndarray, second_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pairs of values that two maps have at the same pixel.

    Args:
        first_HW, second_HW: whole numbers from -2^31 to 2^31 - 1, of one size.

    Returns:
        The values of the first, those of the second, and the counts in pixels (int64 each), ascending by the first
        value, then by the second (negative ones after the others).
    """
    starts = starts_of_runs(first_HW, second_HW)
    lengths = np.diff(starts, append=first_HW.size)
    first, second = (values.ravel()[starts].astype(np.int64) for values in (first_HW, second_HW))
    pairs = (first << 32) | (second & 0xFFFFFFFF)
    present = np.unique(pairs)
    index = np.searchsorted(present, pairs)  # faster than `return_inverse`, which sorts positions
    counts = np.bincount(index, weights=lengths, minlength=len(present)).astype(np.int64)
    return present >> 32, present.astype(np.int32).astype(np.int64), counts


def renamed(map_HW: np.ndarray, names: Mapping[int, int], other: int, dtype: DTypeLike) -> np.ndarray:
    """Return a map (`dtype`) with each value replaced by `names[value]`, or by `other` where `names` lacks it."""
    starts = starts_of_runs(map_HW)
    runs = map_HW.ravel()[starts]
    old = np.unique(runs)
    new: np.ndarray = np.array([names.get(value, other) for value in old.tolist()], dtype=dtype)
    return np.repeat(new[np.searchsorted(old, runs)], np.diff(starts, append=map_HW.size)).reshape(map_HW.shape)


def values_in(plane_HW: np.ndarray) -> np.ndarray:
    """Return the different values of a plane, ascending."""
    return np.unique(plane_HW.ravel()[starts_of_runs(plane_HW)])


def areas_in(plane_HW: np.ndarray) -> dict[int, int]:
    """Return the different values of a plane, ascending, and how many pixels have each."""
    starts = starts_of_runs(plane_HW)
    runs = plane_HW.ravel()[starts]
    values = np.unique(runs)
    areas = np.bincount(np.searchsorted(values, runs), weights=np.diff(starts, append=plane_HW.size))
    return dict(zip(values.tolist(), areas.astype(np.int64).tolist(), strict=True))

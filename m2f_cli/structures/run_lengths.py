"""Maps as run lengths: neighbours mostly have the same id, so there are a hundred times fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def starts_of_runs(*maps_HW: np.ndarray) -> np.ndarray:
    """Flat positions (int64, ascending) where any of some maps of one size changes its value; 0 is the first."""
    first, *others = (map_HW.ravel() for map_HW in maps_HW)
    changes = np.empty(first.size, dtype=bool)
    changes[:1] = True
    np.not_equal(first[1:], first[:-1], out=changes[1:])
    for values in others:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def pair_counts(first_HW: np.ndarray, second_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pairs of values two maps have at the same pixel, and how often.

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
    place = np.searchsorted(present, pairs)  # a third faster than `return_inverse`, which sorts positions
    counts = np.bincount(place, weights=lengths, minlength=len(present)).astype(np.int64)
    return present >> 32, present.astype(np.int32).astype(np.int64), counts


def renamed(map_HW: np.ndarray, names: Mapping[int, int], other: int, dtype: type) -> np.ndarray:
    """The map with each value replaced by `names[value]`, and by `other` where `names` does not have it."""
    starts = starts_of_runs(map_HW)
    old, place = np.unique(map_HW.ravel()[starts], return_inverse=True)
    new = np.array([names.get(int(value), other) for value in old], dtype=dtype)
    return np.repeat(new[place], np.diff(starts, append=map_HW.size)).reshape(map_HW.shape)


def values_in(plane_HW: np.ndarray) -> np.ndarray:
    """The different values of a plane, ascending."""
    flat = plane_HW.ravel()
    # Neighbours are mostly equal: sorting the starts of runs is some twenty times faster than sorting all pixels.
    return np.unique(flat[np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)])

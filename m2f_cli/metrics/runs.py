"""Maps as run lengths: neighbours mostly have the same id, so there are a hundred times fewer runs than pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def starts_of_runs(*maps_HW: np.ndarray) -> np.ndarray:
    """Flat positions (int64, ascending) where any of some maps of one size changes its value; 0 is the first."""
    flat = [map_HW.ravel() for map_HW in maps_HW]
    changes = np.zeros(flat[0].size, dtype=bool)
    changes[:1] = True
    for values in flat:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def pair_counts(first_HW: np.ndarray, second_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pairs of values two maps have at the same pixel, and how often.

    Args:
        first_HW, second_HW: whole numbers from 0 to 2^31 - 1, of one size.

    Returns:
        The values of the first, those of the second, and the counts in pixels (int64 each), ascending by the first
        value, then by the second.
    """
    starts = starts_of_runs(first_HW, second_HW)
    lengths = np.diff(starts, append=first_HW.size)
    pairs = (first_HW.ravel()[starts].astype(np.int64) << 32) | second_HW.ravel()[starts].astype(np.int64)
    pairs, place = np.unique(pairs, return_inverse=True)
    counts = np.bincount(place, weights=lengths, minlength=len(pairs)).astype(np.int64)
    return pairs >> 32, pairs & 0xFFFFFFFF, counts


def renamed(map_HW: np.ndarray, names: Mapping[int, int], other: int, dtype: type) -> np.ndarray:
    """The map with each value replaced by `names[value]`, and by `other` where `names` does not have it."""
    starts = starts_of_runs(map_HW)
    old, place = np.unique(map_HW.ravel()[starts], return_inverse=True)
    new = np.array([names.get(int(value), other) for value in old], dtype=dtype)
    return np.repeat(new[place], np.diff(starts, append=map_HW.size)).reshape(map_HW.shape)

"""Medians, spreads and ratios of a few noisy numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 4000


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median, and the quartiles as "low" and "high"."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """The ratio of medians, theirs / ours, with a 95 % interval.

    The interval is that of a bootstrap over rounds (percentiles): both numbers of a round are drawn together, since a
    slow moment of the machine hits both. None with fewer than three rounds.

    Raises:
        ValueError: not as many of the one as of the other, or none.
    """
    if len(theirs) != len(ours) or not len(ours):
        raise ValueError(f"a ratio needs pairs, not {len(theirs)} and {len(ours)} numbers")
    pairs = np.array([theirs, ours], dtype=float)
    value = float(np.median(pairs[0]) / np.median(pairs[1]))
    if len(ours) < 3:
        return {"value": value, "low": None, "high": None}
    drawn = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    theirs_D, ours_D = np.median(pairs[:, drawn], axis=-1)
    low, high = np.percentile(theirs_D / ours_D, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def difference(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """How far two outputs are apart: numbers by their largest and mean difference, labels by the share that differs.

    Raises:
        ValueError: they have other shapes.
    """
    if theirs.shape != ours.shape:
        raise ValueError(f"outputs of the shapes {theirs.shape} and {ours.shape} cannot be compared")
    if not ours.size:
        return {"share": 0.0}
    if np.issubdtype(ours.dtype, np.integer):
        return {"share": float((theirs != ours).mean())}
    apart = np.abs(theirs.astype(np.float64) - ours)
    return {"largest": float(apart.max()), "mean": float(apart.mean())}

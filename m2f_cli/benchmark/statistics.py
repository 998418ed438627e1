"""Medians, spreads and ratios of noisy timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 4000
SURE = 6  # least rounds: the range of five numbers contains the true median in less than 95 % of all cases


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and the quartiles as "low" and "high"."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of medians, theirs / ours, between "low" and "high". "interval" says what those two are.

    From `SURE` rounds on it is a 95 % interval of a bootstrap over rounds (percentiles). Both numbers of a round are
    drawn together, because a slow moment of the machine affects both. With fewer rounds it is the smallest and the
    largest ratio of a round, and None with a single round.

    Raises:
        ValueError: the sides have unequal numbers of rounds, or none.
    """
    if len(theirs) != len(ours) or not len(ours):
        raise ValueError(f"a ratio needs pairs, not {len(theirs)} and {len(ours)} numbers")
    pairs = np.array([theirs, ours], dtype=float)
    value = float(np.median(pairs[0]) / np.median(pairs[1]))
    if len(ours) == 1:
        return {"value": value, "low": None, "high": None, "interval": None}
    if len(ours) < SURE:
        each = pairs[0] / pairs[1]
        return {"value": value, "low": float(each.min()), "high": float(each.max()), "interval": f"{len(ours)} rounds"}
    drawn = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    theirs_D, ours_D = np.median(pairs[:, drawn], axis=-1)
    low, high = np.percentile(theirs_D / ours_D, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "interval": "95 %"}


def between(ratio: dict[str, Any], spec: str = ".2f") -> str:
    """Return the interval of a `ratio` for people, such as " (95 %: 1.90 to 2.10)", or "" if there is none."""
    if ratio["low"] is None:
        return ""
    return f" ({ratio['interval']}: {ratio['low']:{spec}} to {ratio['high']:{spec}})"


def share(part: float | None, whole: float | None) -> str:
    """Return part / whole for people, or "not told" if one of them is unknown."""
    return f"{part / whole:.2f}" if part is not None and whole else "not told"


def difference(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Return the difference of two outputs.

    Floats have their "largest" and "mean" difference, integers (labels) the "share" that differs. If floats are not
    finite on one side alone, their share is returned instead, as "not finite".

    Raises:
        ValueError: the shapes differ.
    """
    if theirs.shape != ours.shape:
        raise ValueError(f"outputs of the shapes {theirs.shape} and {ours.shape} cannot be compared")
    if not ours.size:
        return {"share": 0.0}
    if np.issubdtype(ours.dtype, np.integer):
        return {"share": float((theirs != ours).mean())}
    strange = ~(np.isfinite(theirs) & np.isfinite(ours))
    if strange.any():
        return {"not finite": float((strange & ~((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)))).mean())}
    apart = np.abs(theirs.astype(np.float64) - ours)
    return {"largest": float(apart.max()), "mean": float(apart.mean())}


def most(difference: dict[str, Any]) -> float:
    """Return a `difference` as one number, infinite if shapes differ or numbers are not finite."""
    if difference.keys() & {"shapes", "not finite"}:
        return float("inf")
    return max(difference.get("share", 0.0), difference.get("largest", 0.0))

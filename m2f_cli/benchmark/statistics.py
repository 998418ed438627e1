"""Medians, spreads and ratios of a few noisy numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 4000
SURE = 6  # rounds: the range of five numbers holds their true median in less than 95 % of all cases


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median, and the quartiles as "low" and "high"."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """The ratio of medians, theirs / ours, between "low" and "high"; "interval" says what those two are.

    From `SURE` rounds on a 95 % interval, that of a bootstrap over rounds (percentiles): both numbers of a round are
    drawn together, since a slow moment of the machine hits both. With fewer the smallest and the largest ratio of a
    round; None with a single one.

    Raises:
        ValueError: not as many of the one as of the other, or none.
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
    """The interval of a `ratio` for people, such as " (95 %: 1.90 to 2.10)"; empty where there is none."""
    if ratio["low"] is None:
        return ""
    return f" ({ratio['interval']}: {ratio['low']:{spec}} to {ratio['high']:{spec}})"


def share(part: float | None, whole: float | None) -> str:
    """Return part / whole for people; "not told" where one of them is not known."""
    return f"{part / whole:.2f}" if part is not None and whole else "not told"


def difference(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """How far two outputs are apart: numbers by their largest and mean difference, labels by the share that differs.
    Numbers that are not finite on one side alone have no difference: their share is there then, as "not finite".

    Raises:
        ValueError: they have other shapes.
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
    """A `difference` as one number; infinite where shapes differ or numbers are not finite."""
    if difference.keys() & {"shapes", "not finite"}:
        return float("inf")
    return max(difference.get("share", 0.0), difference.get("largest", 0.0))

"""Tables of figures as plain rows, from the document results.json of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..structures.categories import Categories


@dataclass(frozen=True)
class QualityRow:
    """Panoptic quality of one class. Figures are percent; None where there was nothing to measure.

    Attributes:
        name: the class.
        kind: thing or stuff; empty where the classes are not known.
        pq, sq, rq: its figures.
        annotated: number of annotated segments.
        missed: annotated segments that were not found.
        wrong: predicted segments that match no annotated one.
    """

    name: str
    kind: str
    pq: float | None
    sq: float | None
    rq: float | None
    annotated: int
    missed: int
    wrong: int


def quality_rows(results: Mapping[str, Any], categories: Categories = ()) -> list[QualityRow]:
    """Return the panoptic quality of each class in the order of the classes; no rows without an evaluation.

    Args:
        results: document results.json of an evaluation (`evaluation.report.ResultsDocument`), or an empty one.
        categories: the classes, which say what is a thing.
    """
    kinds = {category.name: "thing" if category.isthing else "stuff" for category in categories}
    rows = []
    for name, figures in results.get("per_class", {}).get("pq", {}).items():
        hits, wrong, missed = (int(finite(figures.get(key)) or 0) for key in ("tp", "fp", "fn"))
        pq, sq, rq = (finite(figures.get(key)) for key in ("pq", "sq", "rq"))
        rows.append(QualityRow(name, kinds.get(name, ""), pq, sq, rq, hits + missed, missed, wrong))
    return rows


def finite(value: Any) -> float | None:
    """Return a figure as a number; None where it is NaN, infinite or no number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

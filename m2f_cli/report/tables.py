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


# --- any metric -------------------------------------------------------------------------------------------------------

WORDS = {
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ of things",
    "sq_things": "SQ of things",
    "rq_things": "RQ of things",
    "pq_stuff": "PQ of stuff",
    "sq_stuff": "SQ of stuff",
    "rq_stuff": "RQ of stuff",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ar": "AR",
    "ar1": "AR, 1 object",
    "ar10": "AR, 10 objects",
    "ar100": "AR, 100 objects",
    **{f"{name}_{size}": f"{name.upper()}, {size}" for name in ("ap", "ar") for size in ("small", "medium", "large")},
    "miou": "mean IoU",
    "miou_union": "mean IoU, union",
    "fwiou": "IoU by frequency",
    "macc": "mean accuracy",
    "pacc": "pixel accuracy",
    "acc": "accuracy",
    "iou": "IoU",
    "ece": "calibration error",
    "mean_score": "mean score",
    "precision": "precision",
    "tp": "hits",
    "fp": "wrong",
    "fn": "missed",
}
EXPLAINED = {
    "pq": "panoptic quality: SQ x RQ",
    "sq": "segmentation quality: mean IoU of what was found",
    "rq": "recognition quality: F1 of what was found",
    "ap": "average precision over IoU 0.50 to 0.95",
    "ap50": "average precision at IoU 0.50",
    "ap75": "average precision at IoU 0.75",
    "iou": "intersection over union of the pixels",
    "ece": "mean distance of score and share of hits",
}
NOT_COLUMNS = ("pq-errors",)  # a metric with charts of its own
ONLY = {"calibration": ("ece",), "calibration-instance": ("ece",)}  # columns of metrics that have more


@dataclass(frozen=True)
class ClassColumn:
    """Column of a table of classes: its key, its name, what it means, and whether it holds percent."""

    key: str
    name: str
    meaning: str
    is_percent: bool


@dataclass(frozen=True)
class ClassRow:
    """Class with its figures; None where there was nothing to measure."""

    name: str
    label: int | None
    kind: str
    values: list[float | None]


@dataclass(frozen=True)
class FigureTable:
    """Figures of all classes by all metrics that have some. Without rows no class was measured."""

    columns: list[ClassColumn]
    rows: list[ClassRow]


def class_table(
    results: Mapping[str, Any], categories: Categories, annotated: Mapping[str, Mapping[str, int]] | None = None
) -> FigureTable:
    """Return the figures of each class, in the order of the classes.

    Args:
        results: document results.json of an evaluation.
        categories: the classes, which say what is a thing; they may be missing.
        annotated: further columns of counts: name of the column → class → number.
    """
    columns: list[ClassColumn] = []
    values: dict[str, dict[str, float | None]] = {}
    for metric, classes in _tables_of(results).items():
        keys = dict.fromkeys(ONLY.get(metric, (key for figures in classes.values() for key in figures)))
        for key in keys:
            name = WORDS.get(key, key.replace("_", " "))
            is_new = all(column.name != name for column in columns)
            is_count = all(isinstance(figures.get(key, 0), int) for figures in classes.values())
            shown = name if is_new else f"{name} ({metric})"
            columns.append(ClassColumn(f"{metric}.{key}", shown, EXPLAINED.get(key, ""), not is_count))
        for name, figures in classes.items():
            row = values.setdefault(name, {})
            row |= {f"{metric}.{key}": finite(figures.get(key)) for key in keys}
    for column, counts in (annotated or {}).items():
        columns.append(ClassColumn(column, column, "", False))
        for name in counts.keys() | values.keys():
            values.setdefault(name, {})[column] = float(counts.get(name, 0))
    numbers_of = {category.name: i for i, category in enumerate(categories)}
    kinds = {category.name: "thing" if category.isthing else "stuff" for category in categories}
    rows = [
        ClassRow(name, numbers_of.get(name), kinds.get(name, ""), [row.get(column.key) for column in columns])
        for name, row in values.items()
    ]
    return FigureTable(columns, rows)


def _tables_of(results: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return metric → class → figures, as far as they have that form: the file may be anybody's."""
    tables = results.get("per_class")
    found = {}
    for metric, classes in tables.items() if isinstance(tables, Mapping) else ():
        if isinstance(classes, Mapping) and metric not in NOT_COLUMNS:
            kept = {str(name): figures for name, figures in classes.items() if isinstance(figures, Mapping)}
            if any(kept.values()):
                found[str(metric)] = kept
    return found

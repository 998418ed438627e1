"""Tables of error analysis for a terminal: (title, columns, rows) from the figures of the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..metrics import Figures
from ..metrics.pq_repairs import KINDS

Table: TypeAlias = tuple[str, list[str], list[list[str]]]
TOP = 15


def tables(metrics: Mapping[str, Figures], names: Sequence[str] | None = None) -> list[Table]:
    """Return the tables of the metrics pq-errors, calibration and calibration-instance, as far as these are there.

    Args:
        metrics: name → figures of the metric, as in `EvalResult.metrics`.
        names: the names of the scored images, in their order, for the worst ones; without them they go by number.
    """
    shown: list[Table] = []
    if "pq-errors" in metrics:
        figures = metrics["pq-errors"]
        shown += [errors(figures), errors_by_class(figures), sizes(figures), confusion(figures)]
        shown.append(worst_images(figures, names))
    for metric in ("calibration", "calibration-instance"):
        if metric in metrics:
            shown.append(reliability(metrics[metric]))
            threshold = metrics[metric]["tables"].get("object_threshold")
            shown += [object_threshold(threshold)] if threshold and threshold["best"] else []
    return shown


def errors(figures: Figures) -> Table:
    """Return the PQ lost to each kind of error, and the false segments that it explains; the costliest first."""
    rows = []
    for kind in _by_loss({kind: figures[f"pq_lost_{kind}"] for kind in KINDS}):
        count = sum(row[kind] for row in figures["per_class"].values())
        rows.append([kind, number(figures[f"pq_lost_{kind}"]), str(count)])
    return f"PQ lost, of {number(figures['tables']['pq'])}", ["error", "PQ", "segments"], rows


def errors_by_class(figures: Figures, top: int = TOP) -> Table:
    """Return the PQ that each class loses to each kind of error; the worst classes first."""
    classes = {name: row for name, row in figures["per_class"].items() if _is_there(row["pq"])}
    order = sorted(classes, key=lambda name: classes[name]["pq"])[:top]
    rows = [
        [name, number(classes[name]["pq"]), *(number(classes[name][f"pq_lost_{kind}"]) for kind in KINDS)]
        for name in order
    ]
    return "PQ lost per class", ["class", "PQ", *KINDS], rows


def sizes(figures: Figures) -> Table:
    rows = []
    for size, row in figures["tables"]["sizes"].items():
        counts = [str(row[key]) for key in ("segments", "hits", "wrong")]
        lost = [number(row[f"pq_lost_{kind}"]) for kind in KINDS]
        rows.append([size, number(row["pq"]), *counts, number(row["iou_of_hits"]), *lost])
    return "PQ lost by size of segment", ["size", "PQ", "true", "hits", "wrong", "IoU of hits", *KINDS], rows


def confusion(figures: Figures, top: int = TOP) -> Table:
    """Return the pairs of different classes on one mask (IoU > 0.5), most frequent first."""
    pairs = [row for row in figures["tables"]["confusion"] if None not in (row["true"], row["found"])]
    rows = [[row["true"], row["found"], str(row["count"])] for row in pairs if row["true"] != row["found"]][:top]
    return "Classes taken for each other", ["true", "found as", "segments"], rows


def worst_images(figures: Figures, names: Sequence[str] | None = None, top: int = TOP) -> Table:
    rows = []
    for row in figures["tables"]["worst_pictures"][:top]:
        name = str(row["number"]) if names is None else names[row["number"]]
        counts = [str(row[key]) for key in ("hits", "missed", "wrong")]
        rows.append([name, number(row["pq"]), number(row["lost"]), *counts])
    return "Images that cost most", ["image", "PQ", "segments lost", "hits", "missed", "wrong"], rows


def reliability(figures: Figures) -> Table:
    rows = [
        [
            f"{row['from']:.2f} to {row['to']:.2f}",
            str(row["count"]),
            number(row["mean_score"]),
            number(row["precision"]),
        ]
        for row in figures["tables"]["reliability"]
        if row["count"]
    ]
    return f"Scores and hits, ECE {number(figures['ece'])}", ["score", "segments", "mean score", "hits, %"], rows


def object_threshold(table: Mapping[str, Any]) -> Table:
    rows = [
        [name, f"{table[key]['threshold']:.2f}", number(table[key]["pq"])]
        for name, key in (("as evaluated", "now"), ("best on these images", "best"))
    ]
    return f"Object threshold, estimated. {table['caution']}", ["", "least score", "PQ"], rows


def number(value: float | None) -> str:
    return f"{value:.2f}" if _is_there(value) else "–"


def _is_there(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _by_loss(losses: dict[str, float]) -> list[str]:
    return sorted(losses, key=lambda kind: -losses[kind] if _is_there(losses[kind]) else math.inf)

"""Counts over the views of an evaluation: errors by class, confusions, scores and sizes of segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..evaluation.stored_views import ImageView, TaskView
from ..evaluation.views import CROWD, EXCUSED, HIT
from ..structures import Task
from ..structures.categories import Categories
from .bars import BarChart, ColumnChart, CountedSegments, bar_chart, column_chart
from .charts import LineChart, line_chart

SCORE_STEPS = 20
SIZE_EDGES = [4**i for i in range(1, 11)]  # pixels; 32² and 96² (COCO's limits) lie among them
THRESHOLDS = 100
NO_END = 2**53  # of the last column
MOST_CONFUSED = 30
MISSED, WRONG = "missed", "wrong"


@dataclass
class TaskCounts:
    """Counts of one task; segments that are crowds or excused take no part.

    Attributes:
        true: annotated segments of each class, by what is wrong with them ("hit" where nothing is).
        found: the same of the predicted segments.
        images: images of each class that have it annotated.
        confusion: pairs (annotated, predicted class) with their number; None stands for no partner.
        scores: predicted segments in steps of 0.05, each as hits and wrong ones.
        sizes: annotated segments by area, each as hits and missed ones.
        thresholds: scores of hits and of wrong segments, in steps of 0.01.
    """

    true: dict[int, Counter[str]] = field(default_factory=dict)
    found: dict[int, Counter[str]] = field(default_factory=dict)
    images: Counter[int] = field(default_factory=Counter)
    confusion: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)
    scores: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in range(SCORE_STEPS)])
    sizes: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in range(len(SIZE_EDGES) + 1)])
    thresholds: np.ndarray = field(default_factory=lambda: np.zeros((2, THRESHOLDS), np.int64))

    def add(self, image: TaskView) -> None:
        """Add one image."""
        self.images.update({each.label for each in image.true})
        for each in image.true:
            if each.kind != CROWD:
                self.true.setdefault(each.label, Counter())[each.kind] += 1
                step = int(np.searchsorted(SIZE_EDGES, each.area, side="right"))
                self.sizes[step][HIT if each.kind == HIT else MISSED] += 1
        for each in image.found:
            if each.kind != EXCUSED:
                self.found.setdefault(each.label, Counter())[each.kind] += 1
            if each.score is not None and each.kind != EXCUSED:
                share = min(each.score, 0.999999)
                self.scores[int(share * SCORE_STEPS)][HIT if each.kind == HIT else WRONG] += 1
                self.thresholds[int(each.kind != HIT), int(share * THRESHOLDS)] += 1
        self.confusion.update({(a, b): count for a, b, count in image.confusion} or _pairs(image))


def _pairs(image: TaskView) -> Counter[tuple[int | None, int | None]]:
    pairs: Counter[tuple[int | None, int | None]] = Counter()
    for each in image.true:
        if each.kind != CROWD:
            is_pair = each.kind in (HIT, "class") and each.partner is not None
            pairs[each.label, image.found[each.partner or 0].label if is_pair else None] += 1
    for each in image.found:
        if each.kind not in (HIT, "class", EXCUSED):
            pairs[None, each.label] += 1
    return pairs


class ViewStatistics:
    """Counts of each task over all views."""

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = {task: TaskCounts() for task in tasks}
        self.images = 0

    def add(self, view: ImageView) -> None:
        """Add one image."""
        self.images += 1
        for task, image in view.tasks.items():
            if task in self.tasks:
                self.tasks[task].add(image)


# --- charts -----------------------------------------------------------------------------------------------------------


def errors_by_class(counts: TaskCounts, categories: Categories) -> BarChart:
    """Return false segments of each class by their kind. Errors that have two segments count on the annotated one."""
    rows = []
    for label in sorted({*counts.true, *counts.found}):
        true, found = counts.true.get(label, Counter()), counts.found.get(label, Counter())
        values = {kind: count for kind, count in true.items() if kind != HIT}
        values |= {kind: found[kind] for kind in ("spurious", "duplicate") if found[kind]}
        rows.append((categories[label].name, values))
    numbers = {category.name: i for i, category in enumerate(categories)}
    caption = "Annotated segments that were not found, and predicted ones that belong to none."
    return bar_chart("False segments of each class", caption, rows, unit="segments", labels=numbers)


def score_histogram(counts: TaskCounts) -> ColumnChart:
    """Return hits and wrong segments by score."""
    edges = [f"{i / SCORE_STEPS:g}" for i in range(SCORE_STEPS + 1)]
    columns = [{HIT: each[HIT], WRONG: each[WRONG]} for each in counts.scores]
    counted = CountedSegments("found", "score", [*(i / SCORE_STEPS for i in range(SCORE_STEPS)), NO_END])
    return column_chart("Scores of predicted segments", "score", edges, columns, every=2, counted=counted)


def size_histogram(counts: TaskCounts) -> ColumnChart:
    """Return found and missed segments by area."""
    edges = ["0", *(str(round(area**0.5)) for area in SIZE_EDGES), "∞"]
    columns = [{HIT: each[HIT], MISSED: each[MISSED]} for each in counts.sizes]
    counted = CountedSegments("true", "area", [0, *SIZE_EDGES, NO_END])
    return column_chart(
        "Sizes of annotated segments", "square root of the area in pixels", edges, columns, counted=counted
    )


def threshold_chart(counts: TaskCounts) -> LineChart:
    """Return precision, recall and their harmonic mean (F1), if segments of lower score were taken away."""
    title = "Precision and recall over the score threshold"
    annotated = sum(sum(kinds.values()) for kinds in counts.true.values())
    if not annotated or not counts.thresholds.any():
        return line_chart(title, {})
    hits_X, wrong_X = counts.thresholds[:, ::-1].cumsum(1)[:, ::-1]
    lines: dict[str, list[tuple[float, float]]] = {"precision": [], "recall": [], "F1": []}
    for i, (hits, wrong) in enumerate(zip(hits_X.tolist(), wrong_X.tolist(), strict=True)):
        if hits + wrong:
            lines["precision"].append((i / THRESHOLDS, 100 * hits / (hits + wrong)))
        lines["recall"].append((i / THRESHOLDS, 100 * hits / annotated))
        lines["F1"].append((i / THRESHOLDS, 200 * hits / (hits + wrong + annotated)))
    return line_chart(title, lines, x_label="least score", highest=100.0, beside="highest")


# --- confusions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfusionCell:
    """Number of pairs, how strongly it is coloured (0 to 9), and the numbers of the classes; None for no partner."""

    count: int
    heat: int
    true: int | None
    found: int | None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Classes that are taken for each other, the most confused first.

    Attributes:
        columns: names of the predicted classes.
        rows: name of each annotated class with its cells.
        unit: what the cells count.
        more: number of classes that are left out.
    """

    columns: list[str]
    rows: list[tuple[str, list[ConfusionCell]]]
    unit: str
    more: int


def confusion_matrix(counts: TaskCounts, categories: Categories, task: Task) -> ConfusionMatrix:
    """Return the matrix of the classes with the most confusions, rows sorted by their number."""
    pairs = counts.confusion
    wrong: Counter[int] = Counter()
    for (true, found), count in pairs.items():
        if true != found:
            wrong.update({label: count for label in (true, found) if label is not None})
    present = {label for pair in pairs for label in pair if label is not None}
    order = sorted(present, key=lambda label: (-wrong[label], label))
    shown: list[int | None] = [*order[:MOST_CONFUSED]]
    if any(None in pair for pair in pairs):
        shown.append(None)
    rows = []
    for true in shown:
        total = sum(pairs[true, found] for found in shown) or 1
        cells = [_cell(pairs, true, found, total) for found in shown]
        rows.append((_name(true, categories), cells))
    unit = "pixels" if task == "semantic" else "segments"
    columns = [_name(label, categories) for label in shown]
    return ConfusionMatrix(columns, rows, unit, max(0, len(order) - MOST_CONFUSED))


def _cell(
    pairs: Mapping[tuple[int | None, int | None], int], true: int | None, found: int | None, total: int
) -> ConfusionCell:
    count = pairs.get((true, found), 0)
    return ConfusionCell(count, min(9, -(-9 * count // total)), true, found)


def _name(label: int | None, categories: Categories) -> str:
    return "nothing" if label is None else categories[label].name

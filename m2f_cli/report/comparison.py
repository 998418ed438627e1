"""The page of two evaluations: what became better and worse, by class and by image."""

from __future__ import annotations

import heapq
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.compare import Comparison, Difference, compare
from ..evaluation.report import RESULTS
from ..evaluation.stored_views import ImageView, StoredViews, open_views
from ..runtime.documents import read_json
from ..structures import Task
from .evaluation import WAYS, environment_of
from .gallery import colored
from .page import write_page
from .records import flat, mapping
from .tables import WORDS, finite

PAGE = "comparison.html"
MOST = 300  # images of a page; each has two predictions
WIDEST = 50.0  # half of the width of a bar, in its own units


@dataclass(frozen=True)
class DifferenceRow:
    """Difference of a figure or a class in percent; None where there was nothing to measure.

    Attributes:
        name: the figure or the class.
        label: number of the class; None for a figure.
        a, b, difference, low, high: as in `evaluation.compare.Difference`.
        is_clear: True where the interval does not hold 0.
        bar: left edge and width of a bar around 50, of 100.
    """

    name: str
    label: int | None
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    is_clear: bool
    bar: tuple[float, float]


def write_comparison_page(run_a: Path, run_b: Path, out: Path | None = None, *, metric: str | None = None) -> Path:
    """Compare two folders of `m2f eval`, write the page, and return it.

    Args:
        run_a, run_b: the folders; differences are B - A.
        out: the page; by default comparison.html in the folder of B.
        metric: its name; by default the headline of a task that both have.

    Raises:
        ConfigError: both runs do not have the metric.
        DataError: a folder holds no evaluation, or the evaluations do not fit each other.
        M2FError: the page cannot be written.
    """
    return write_compared(compare(run_a, run_b, metric=metric), out)


def write_compared(comparison: Comparison, out: Path | None = None) -> Path:
    """Write the page of a comparison; see `write_comparison_page`."""
    run_a, run_b = Path(comparison.run_a), Path(comparison.run_b)
    views = open_views(run_a), open_views(run_b)
    labels = {category.name: i for i, category in enumerate(views[0].categories)} if views[0] else {}
    pairs, gallery = 0, None
    if views[0] is not None and views[1] is not None:
        pairs, gallery = _gallery(views[0], views[1])
    widest = max(
        (abs(each.difference) for each in comparison.per_class if finite(each.difference) is not None), default=1
    )
    return write_page(
        "comparison.html",
        out or run_b / PAGE,
        title=f"{_name(run_a)} and {_name(run_b)}",
        names=(_name(run_a), _name(run_b)),
        comparison=comparison,
        summary=comparison.summary(),
        figures=[_row(each, {}, 1.0) for each in comparison.figures],
        classes=[_row(each, labels, widest or 1.0) for each in comparison.per_class],
        gallery=gallery,
        pairs=pairs,
        settings=_settings(run_a, run_b),
        command=shlex.join(["m2f", "eval", "--compare", comparison.run_a, comparison.run_b]),
        ways=WAYS,
    )


def _settings(*runs: Path) -> list[tuple[str, list[str]]]:
    """Return model, data, settings and versions of both evaluations, first what differs; a dash where one has none."""
    sides = []
    for folder in runs:
        results = mapping(read_json(folder / RESULTS)) if (folder / RESULTS).is_file() else {}
        parts = {key: mapping(results.get(key)) for key in ("model", "data", "settings")}
        sides.append(dict(flat({**parts, **environment_of(folder)})))
    names = dict.fromkeys(key for side in sides for key in side)
    rows = [(name, [side.get(name, "–") for side in sides]) for name in names]
    return sorted(rows, key=lambda row: row[1][0] == row[1][1])


def _name(folder: Path) -> str:
    return folder.resolve().name


def _row(each: Difference, labels: dict[str, int], widest: float) -> DifferenceRow:
    length = 0.0 if math.isnan(each.difference) else WIDEST * each.difference / widest
    return DifferenceRow(
        each.name if labels else WORDS.get(each.name, each.name),
        labels.get(each.name),
        *(finite(value) for value in (each.a, each.b, each.difference, each.low, each.high)),
        is_clear=each.is_clear,
        bar=(WIDEST + min(0.0, length), abs(length)),
    )


def _gallery(a: StoredViews, b: StoredViews) -> tuple[int, dict[str, Any] | None]:
    """Return the number of images with views in both, and what the script takes: those that changed most."""
    tasks = [task for task in a.tasks if task in b.tasks]
    if not tasks:
        return 0, None
    before = {view.name: _figure(view, tasks[0]) for view in a}
    changes = {view.name: _change(before[view.name], _figure(view, tasks[0])) for view in b if view.name in before}
    chosen = set(heapq.nlargest(MOST, changes, key=lambda name: changes[name]))
    after = {view.name: view for view in b if view.name in chosen}
    shown = []
    for view in a:
        other = after.get(view.name)
        if other is not None and other.thumbnail.size == view.thumbnail.size:
            second = {task: each.model_dump(mode="json", exclude_defaults=True) for task, each in other.tasks.items()}
            shown.append({**view.model_dump(mode="json", exclude_defaults=True), "second": second})
    if not shown:
        return len(changes), None
    return len(changes), {"tasks": tasks, **colored(a.categories), "views": shown, "compares": True}


def _figure(view: ImageView, task: Task) -> float | None:
    return view.tasks[task].figure if task in view.tasks else None


def _change(before: float | None, after: float | None) -> float:
    return -1.0 if before is None or after is None else abs(after - before)

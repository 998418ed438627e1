"""The page of an evaluation: figures, classes, errors, confusions, scores, and its images with their segments.

OUT/report.html                    one page with up to `MOST` images
OUT/report/index.html, images-….html    of more images: the page with the worst ones, and pages with all of them
"""

from __future__ import annotations

import heapq
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.run_folder import ENVIRONMENT
from ..errors import DataError
from ..evaluation.report import (
    RESULTS,
    SCHEMA_VERSION,
    FailedImage,
    PublishedFigure,
    ScoredData,
    ScoredModel,
)
from ..evaluation.stored_views import ImageView, StoredViews, open_views
from ..metrics.pq_repairs import KINDS
from ..results.views import LEAST_SCORE
from ..runtime.documents import read_json
from ..structures.categories import Categories
from . import view_statistics as counting
from .bars import BarChart, bar_chart
from .charts import LineChart, line_chart
from .gallery import INDEX, MOST, Gallery, gallery_of, parts_of, write_parts
from .page import write_page
from .records import flat, listed, mapping
from .records import row as row_of
from .tables import WORDS, class_table, finite

PAGE = "report.html"
ANALYSIS = ("ece", "mean_score", "precision")
LARGE_FIGURES = 4
AP_CAPTION = "The area below a curve is its AP; the mean of all classes."
WAYS = {  # kinds of errors in words; of the demo's figures the page has none
    "class": "the mask is right, the class is another",
    "split": "found in several pieces",
    "merged": "found together with others",
    "boundary": "found, with too little overlap; of hits the pixels that only one of both has",
    "missed": "not found",
    "spurious": "found where nothing of this class is",
    "duplicate": "found twice",
    "wrong": "a predicted segment that belongs to none",
    "hit": "found, with the right class",
}


@dataclass(frozen=True)
class HeadFigure:
    """Figure of the whole: its name, its value in percent, and the published one where there is one."""

    name: str
    value: float | None
    published: float | None = None
    difference: float | None = None


def write_evaluation_page(folder: Path, out: Path | None = None, *, most: int = MOST) -> Path:
    """Write the page of a folder of `m2f eval`, and return it.

    Args:
        folder: the folder, with results.json.
        out: the page; by default report.html in the folder. With more than `most` images it is the page index.html in
            a folder of that name without suffix.
        most: number of images on one page.

    Raises:
        DataError: the folder holds no evaluation, or a damaged file.
        M2FError: the page cannot be written.
    """
    out = out or folder / PAGE
    results = _results(folder)
    views = open_views(folder)
    statistics = counting.ViewStatistics(views.tasks if views else ())
    limit = mapping(results.get("settings")).get("limit")
    count = limit if isinstance(limit, int) else sys.maxsize
    worst = heapq.nsmallest(most, _counted(views, statistics, count), key=_order(views)) if views else []
    values = _values(folder, results, views, statistics)
    if statistics.images <= most:
        return write_page("evaluation.html", out, gallery=_gallery(views, worst), pages=[], **values)
    assert views is not None
    return _write_folder(out.with_suffix(""), views, worst, values, most)


def _write_folder(folder: Path, views: StoredViews, worst: list[ImageView], values: dict[str, Any], most: int) -> Path:
    """Write an index with the worst images, and a page for each part of the images in their order."""
    galleries = (_gallery(views, part) for part in parts_of(views, most))
    pages = write_parts(folder, galleries, values["title"], WAYS, most, values["images"])
    return write_page("evaluation.html", folder / INDEX, gallery=_gallery(views, worst), pages=pages, **values)


def _results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(
            f"{folder} holds no evaluation: there is no {RESULTS}.", hint="Pass a folder of `m2f eval` or `m2f train`."
        )
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("figures"), dict):
        raise DataError(f"{path} has no figures.", hint="Evaluate again.")
    return tree


def _counted(views: StoredViews, statistics: counting.ViewStatistics, count: int) -> Iterator[ImageView]:
    """Yield the first `count` images, and count them; more are left by an evaluation with a higher --limit."""
    for view in views:
        if view.number < count:
            statistics.add(view)
            yield view


def _order(views: StoredViews) -> Any:
    """Return a key that puts the worst images first, and those without a figure last."""

    def key(view: ImageView) -> tuple[float, int]:
        own = next((view.tasks[task].figure for task in views.tasks if task in view.tasks), None)
        return (101.0 if own is None else own), view.number

    return key


def _gallery(views: StoredViews | None, images: Sequence[ImageView]) -> Gallery | None:
    return None if views is None else gallery_of(views.tasks, views.categories, images)


# --- values of the template -------------------------------------------------------------------------------------------


def _values(
    folder: Path, results: Mapping[str, Any], views: StoredViews | None, statistics: counting.ViewStatistics
) -> dict[str, Any]:
    model, data = row_of(results.get("model"), ScoredModel), row_of(results.get("data"), ScoredData)
    categories = views.categories if views else ()
    task = views.tasks[0] if views and views.tasks else None
    counts = statistics.tasks[task] if task else counting.TaskCounts()
    annotated = _annotated(counts, categories)
    if task == "instance":  # its metric counts the same
        annotated.pop("segments", None)
    environment = environment_of(folder)
    figures = _figures(results)
    version = results.get("schema_version")
    return {
        "title": f"Evaluation of {model['name'] or 'a model'}",
        "model": model,
        "data": data,
        "scored": results.get("scored"),
        "of": results.get("of"),
        "failures": [(row["name"], row["message"]) for row in _failures(results)],
        "notes": [str(each) for each in listed(results.get("notes"))],
        "version_note": None if version == SCHEMA_VERSION else f"results.json has the version {version!r}.",
        "figures": figures[:LARGE_FIGURES],
        "more_figures": figures[LARGE_FIGURES:],
        "published": [row_of(each, PublishedFigure) for each in listed(results.get("published")) if mapping(each)],
        "classes": class_table(results, categories, annotated),
        "lost": _lost(results, categories),
        "false_segments": counting.errors_by_class(counts, categories),
        "matrix": counting.confusion_matrix(counts, categories, task or "panoptic") if counts.confusion else None,
        "charts": [chart for chart in _line_charts(results, counts) if chart.lines],
        "histograms": [counting.score_histogram(counts), counting.size_histogram(counts)],
        "sweep": _sweep(results),
        "least_score": LEAST_SCORE,
        "images": statistics.images,
        "has_views": views is not None,
        "task": task,
        "ways": WAYS,
        "settings": list(flat(mapping(results.get("settings")))),
        "command": shlex.join(map(str, listed(environment.pop("command", None)))),
        "environment": list(flat(environment)),
        "seconds": results.get("seconds"),
        "speed": results.get("images_per_second"),
    }


def _failures(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row_of(each, FailedImage) for each in listed(results.get("failures")) if mapping(each)]


def _figures(results: Mapping[str, Any]) -> list[HeadFigure]:
    published = {}
    for each in reversed(listed(results.get("published"))):
        row = mapping(each)
        published[row.get("metric")] = (finite(row.get("value")), finite(row.get("difference")))
    return [
        HeadFigure(WORDS.get(name, str(name).replace("_", " ")), finite(value), *published.get(name, (None, None)))
        for name, value in mapping(results.get("figures")).items()
        if not str(name).startswith("pq_lost_") and name not in ANALYSIS
    ]


def _annotated(counts: counting.TaskCounts, categories: Categories) -> dict[str, dict[str, int]]:
    if not counts.images:
        return {}
    segments = {categories[label].name: sum(kinds.values()) for label, kinds in counts.true.items()}
    images = {categories[label].name: count for label, count in counts.images.items()}
    return {"segments": segments, "images": images}


def _lost(results: Mapping[str, Any], categories: Categories) -> list[BarChart]:
    """Return what each kind of error costs: in all, per size and per class; nothing without pq-errors."""
    figures = mapping(results.get("figures"))
    if not any(f"pq_lost_{kind}" in figures for kind in KINDS):
        return []
    classes = mapping(mapping(results.get("per_class")).get("pq-errors"))
    sizes = mapping(mapping(mapping(results.get("tables")).get("pq-errors")).get("sizes"))
    numbers = {category.name: i for i, category in enumerate(categories)}

    def chart(title: str, caption: str, rows: Mapping[str, Any], *, by_size: bool = False) -> BarChart:
        values = [(str(name), _losses(mapping(row))) for name, row in rows.items()]
        return bar_chart(title, caption, values, unit="PQ", digits=1, labels=numbers, by_size=by_size)

    alone = {kind: {f"pq_lost_{kind}": figures.get(f"pq_lost_{kind}")} for kind in KINDS}
    return [
        chart("PQ lost to each kind of error", "What PQ would gain if this kind alone were repaired.", alone),
        chart("By size of segment", "Small: below 32 x 32 pixels; large: from 96 x 96 on.", sizes, by_size=True),
        chart("By class", "Each kind is repaired alone, so the parts need not add up to what is missing.", classes),
    ]


def _losses(row: Mapping[str, Any]) -> dict[str, float]:
    return {kind: finite(row.get(f"pq_lost_{kind}")) or 0.0 for kind in KINDS}


def _line_charts(results: Mapping[str, Any], counts: counting.TaskCounts) -> Iterator[LineChart]:
    tables = mapping(results.get("tables"))
    for metric in ("calibration", "calibration-instance"):
        table = mapping(tables.get(metric))
        rows = [mapping(row) for row in listed(table.get("reliability"))]
        hits = _points(rows, "mean_score", "precision")
        if hits:
            lines = {"share of hits": hits, "calibrated": [(0.0, 0.0), (100.0, 100.0)]}
            title = "Calibration: scores and hits"
            yield line_chart(title, lines, x_label="mean score, %", highest=100.0, beside="none")
        thresholds = mapping(table.get("object_threshold"))
        curve = [mapping(row) for row in listed(thresholds.get("curve"))]
        yield line_chart(
            "PQ over the object threshold, estimated",
            {"PQ": _points(curve, "threshold", "pq")},
            x_label="least score",
            beside="highest",
            caption=_advice(thresholds),
        )
    for metric in ("ap", "boundary-ap"):
        curves = mapping(mapping(tables.get(metric)).get("precision"))
        lines = {_iou_word(name): _curve(listed(values)) for name, values in curves.items()}
        title = "Precision over recall" if metric == "ap" else "Precision over recall, boundaries"
        yield line_chart(title, lines, x_label="recall, %", highest=100.0, beside="none", caption=AP_CAPTION)
    yield counting.threshold_chart(counts)


def _iou_word(name: str) -> str:
    return "mean over IoU 0.50 to 0.95" if name == "mean" else f"IoU {name}"


def _curve(values: Sequence[Any]) -> list[tuple[float, float]]:
    """Return precision at points of recall that are evenly spread from 0 to 100 %."""
    known = [finite(value) for value in values]
    return [(100 * i / max(1, len(known) - 1), value) for i, value in enumerate(known) if value is not None]


def _advice(thresholds: Mapping[str, Any]) -> str:
    """Return what another object threshold would gain, in words."""
    now, best = (mapping(thresholds.get(key)) for key in ("now", "best"))
    if any(finite(each.get(key)) is None for each in (now, best) for key in ("threshold", "pq")):
        return ""
    measured, highest = (f"PQ {each['pq']:.1f} at {each['threshold']:.2f}" for each in (now, best))
    return f"Measured: {measured}. Highest: {highest}. {thresholds.get('caution', '')}".strip()


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    pairs = [(finite(row.get(x)), finite(row.get(y))) for row in rows]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _sweep(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return PQ of every pair of thresholds as rows, with the heat (0 to 9) of each cell."""
    tree = mapping(results.get("threshold_sweep"))
    pairs = [mapping(each) for each in listed(tree.get("pairs"))]
    grid = {(finite(row.get("object_threshold")), finite(row.get("overlap_threshold"))): row for row in pairs}
    known = [finite(row.get("pq")) for row in grid.values()]
    values = [value for value in known if value is not None]
    if not values:
        return None
    low, span = min(values), max(values) - min(values) or 1.0
    columns = sorted({b for _, b in grid if b is not None})
    rows = []
    for a in sorted({a for a, _ in grid if a is not None}):
        own = [finite(mapping(grid.get((a, b))).get("pq")) for b in columns]
        rows.append((a, [(pq, 0 if pq is None else round(9 * (pq - low) / span)) for pq in own]))
    return {"columns": columns, "rows": rows, "caution": str(tree.get("caution", ""))}


def environment_of(folder: Path) -> dict[str, Any]:
    """Return versions, machine and command of an evaluation, as far as its folder names them."""
    path = folder / ENVIRONMENT
    tree = mapping(read_json(path)) if path.is_file() else {}
    wanted = ("m2f", "torch", "python", "machine", "device", "processes", "command")
    return {key: tree[key] for key in wanted if key in tree}

"""Line charts as plain numbers, which the template `parts.html` draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..runtime.metrics_log import MOST_DRAWN, points_of, read_entries

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 300  # user units of the SVG, which scales with the page
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44
MOST_POINTS = 150  # points of a line; more are averaged, as they are nearer than a pixel or two
TICKS = 5
LOSSES = {"loss": "total", "loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"}
QUALITIES = {"pq": "all classes", "pq_things": "things", "pq_stuff": "stuff"}


@dataclass(frozen=True)
class ChartTick:
    """Number at an axis.

    Attributes:
        at: its place in the SVG.
        text: the number.
    """

    at: float
    text: str


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart.

    Attributes:
        name: its name in the legend.
        path: points of the SVG polyline.
        marks: (x, y, text) of each point, in the SVG; the text is shown where the mouse rests.
        beside: a value as text, by default the last.
    """

    name: str
    path: str
    marks: list[tuple[float, float, str]]
    beside: str


@dataclass(frozen=True)
class LineChart:
    """A line chart, ready to be drawn. Without lines there was nothing to draw.

    Attributes:
        title: its heading.
        x_label: what the horizontal axis says.
        lines: the lines.
        x_ticks, y_ticks: numbers at the axes.
        caption: sentences about it.
        box: left, top, right and bottom of the area of the lines.
        size: width and height.
    """

    title: str
    x_label: str
    lines: list[ChartLine]
    x_ticks: list[ChartTick]
    y_ticks: list[ChartTick]
    caption: str = ""
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    size: tuple[int, int] = (WIDTH, HEIGHT)


def training_charts(metrics: Path) -> list[LineChart]:
    """Return the charts of a run: its losses and its panoptic quality over the iterations.

    Args:
        metrics: metrics.jsonl of the run.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    entries = read_entries(metrics)
    return [
        line_chart("Loss", _lines(entries, "train", LOSSES), x_label="iteration"),
        line_chart("Panoptic quality", _lines(entries, "val", QUALITIES), x_label="iteration", highest=100.0),
    ]


def _lines(entries: Sequence[dict[str, Any]], kind: str, names: Mapping[str, str]) -> dict[str, Points]:
    return {shown: points_of(entries, kind, name) for name, shown in names.items()}


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str = "",
    highest: float | None = None,
    beside: Literal["last", "highest", "none"] = "last",
    caption: str = "",
) -> LineChart:
    """Return a chart of lines by name. Both axes begin at 0, or lower where values are.

    Args:
        title: heading of the chart.
        lines: points (x, y) of each line in the order of x. Points that are no numbers are left out.
        x_label: what the horizontal axis says.
        highest: end of the vertical axis; by default the largest value.
        beside: value of each line that stands beside its name.
        caption: sentences about it.
    """
    drawn = {name: _thinned([p for p in points if _is_finite(p)]) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return LineChart(title, x_label, [], [], [])
    xs, ys = zip(*(point for points in drawn.values() for point in points), strict=True)
    x_axis = axis(min(0.0, *xs), max(xs))
    y_axis = axis(min(0.0, *ys), max(ys) if highest is None else max(highest, *ys))

    def at_x(x: float) -> float:
        return round(LEFT + (x - x_axis[0]) / (max(xs) - x_axis[0] or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_axis[0]) / (y_axis[-1] - y_axis[0]) * (HEIGHT - TOP - BOTTOM), 1)

    def line(name: str, points: Points) -> ChartLine:
        word = "after" if x_label in ("", "iteration") else f"at {x_label}"
        marks = [(at_x(x), at_y(y), f"{name}: {y:.4g} {word} {x:g}") for x, y in points]
        return ChartLine(name, " ".join(f"{x},{y}" for x, y, _ in marks), marks, _beside(points, beside))

    return LineChart(
        title,
        x_label,
        [line(name, points) for name, points in drawn.items()],
        [ChartTick(at_x(value), tick_text(value)) for value in x_axis if value <= max(xs)],
        [ChartTick(at_y(value), tick_text(value)) for value in y_axis],
        caption,
    )


def tick_text(value: float) -> str:
    """Return the number of an axis in few letters: very small and very large ones as 5e-5 and 2e5."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _beside(points: Points, which: str) -> str:
    if which == "none":
        return ""
    if which == "highest":
        x, y = max(points, key=lambda point: point[1])
        return f"{y:.4g} at {x:.4g}"
    return f"{points[-1][1]:.4g}"


def _is_finite(point: tuple[float, float]) -> bool:
    return all(abs(value) < MOST_DRAWN for value in point)  # False for NaN


def _thinned(points: Points) -> Points:
    """Return at most `MOST_POINTS` points, each the mean of its neighbours."""
    count = math.ceil(len(points) / MOST_POINTS)
    if count <= 1:
        return points
    groups = [points[i : i + count] for i in range(0, len(points), count)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def axis(low: float, high: float) -> list[float]:
    """Return round numbers with equal steps (1, 2 or 5 times a power of ten) that enclose a range."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next((power * factor for factor in (1, 2, 5) if span / (power * factor) <= TICKS), 10 * power)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]

"""Stacked bars and columns as plain numbers, which the template `parts.html` draws as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ChartTick, axis, tick_text

MOST_BARS = 25


@dataclass(frozen=True)
class Part:
    """Part of a bar.

    Attributes:
        kind: names its colour: "hit", or a kind of error.
        at: where it begins.
        length: its length, in the same units.
        text: its value in words.
    """

    kind: str
    at: float
    length: float
    text: str


@dataclass(frozen=True)
class Bar:
    """One bar of parts, in shares of 1000 of the longest.

    Attributes:
        name: the name beside it.
        total: its value as text.
        parts: the parts, one after the other.
        label: number of the class that it stands for; None for none.
        size: name of the size of segments that it stands for; empty for none.
    """

    name: str
    total: str
    parts: list[Part]
    label: int | None = None
    size: str = ""


@dataclass(frozen=True)
class BarChart:
    """Stacked bars. Without bars there was nothing to draw.

    Attributes:
        title: its heading.
        caption: one sentence about it.
        kinds: the kinds that occur, for the legend.
        bars: the bars.
        more: number of bars that are left out.
    """

    title: str
    caption: str
    kinds: list[str]
    bars: list[Bar]
    more: int = 0


@dataclass(frozen=True)
class CountedSegments:
    """Segments that columns count.

    Attributes:
        side: "true" for annotated segments, "found" for predicted ones.
        key: "area" or "score" of a segment.
        edges: least value of each column, and the end of the last.
    """

    side: Literal["true", "found"]
    key: Literal["area", "score"]
    edges: Sequence[float]


@dataclass(frozen=True)
class ColumnChart:
    """Stacked columns over a range of numbers.

    Attributes:
        title, x_label, size, box: as in `charts.LineChart`.
        columns: left edge, width and parts of each column; `at` of a part is its upper edge.
        x_ticks, y_ticks: numbers at the axes.
        kinds: the kinds that occur.
        counted: what the columns count, to filter images by them; None where they filter nothing.
    """

    title: str
    x_label: str
    columns: list[tuple[float, float, list[Part]]]
    x_ticks: list[ChartTick]
    y_ticks: list[ChartTick]
    kinds: list[str]
    box: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    size: tuple[int, int] = field(default=(WIDTH, HEIGHT))
    counted: CountedSegments | None = None


def bar_chart(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    unit: str = "",
    digits: int = 0,
    labels: Mapping[str, int] | None = None,
    most: int = MOST_BARS,
    by_size: bool = False,
) -> BarChart:
    """Return stacked bars, the longest first; those of sizes in their order.

    Args:
        title, caption: heading and sentence.
        rows: name and the value of each kind. Values that are 0 or less are left out.
        unit: what the values count, for texts.
        digits: digits of the values.
        labels: numbers of the classes by their names.
        most: most bars that are drawn.
        by_size: True if the names are those of sizes of segments.
    """
    kept = [(name, {kind: value for kind, value in values.items() if value > 0}) for name, values in rows]
    kept = sorted((row for row in kept if row[1]), key=lambda row: 0 if by_size else -sum(row[1].values()))
    longest = max((sum(values.values()) for _, values in kept), default=1.0)
    bars = []
    for name, values in kept[:most]:
        parts, at = [], 0.0
        for kind, value in values.items():
            length = 1000 * value / longest
            text = f"{name}, {kind}: {value:.{digits}f}{unit and ' ' + unit}"
            parts.append(Part(kind, round(at, 2), round(length, 2), text))
            at += length
        bars.append(
            Bar(name, f"{sum(values.values()):.{digits}f}", parts, (labels or {}).get(name), name if by_size else "")
        )
    return BarChart(title, caption, _kinds(values for _, values in kept), bars, max(0, len(kept) - most))


def column_chart(
    title: str,
    x_label: str,
    edges: Sequence[str],
    columns: Sequence[Mapping[str, int]],
    every: int = 1,
    counted: CountedSegments | None = None,
) -> ColumnChart:
    """Return stacked columns of counts.

    Args:
        title, x_label: as in `charts.line_chart`.
        edges: texts of the edges of the columns, one more than there are columns.
        columns: counts of each kind.
        every: text at every n-th edge.
        counted: what the columns count, if they filter images.
    """
    highest = max((sum(column.values()) for column in columns), default=0)
    if not highest:
        return ColumnChart(title, x_label, [], [], [], [])
    y_axis = axis(0.0, float(highest))
    step, height = (WIDTH - LEFT - RIGHT) / len(columns), HEIGHT - TOP - BOTTOM
    drawn = []
    for i, column in enumerate(columns):
        bottom, parts = float(HEIGHT - BOTTOM), []
        for kind, count in column.items():
            length = count / y_axis[-1] * height
            bottom -= length
            if count:
                text = f"{kind}: {count} of {x_label} {edges[i]} to {edges[i + 1]}"
                parts.append(Part(kind, round(bottom, 1), round(length, 1), text))
        drawn.append((round(LEFT + i * step + 1, 1), round(step - 2, 1), parts))
    x_ticks = [ChartTick(round(LEFT + i * step, 1), text) for i, text in enumerate(edges) if i % every == 0]
    y_ticks = [ChartTick(round(HEIGHT - BOTTOM - value / y_axis[-1] * height, 1), tick_text(value)) for value in y_axis]
    return ColumnChart(title, x_label, drawn, x_ticks, y_ticks, _kinds(columns), counted=counted)


def _kinds(rows: Any) -> list[str]:
    return list(dict.fromkeys(kind for row in rows for kind, value in row.items() if value))

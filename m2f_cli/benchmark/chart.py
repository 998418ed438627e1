"""Chart of a benchmark: a bar for each side, cut into its stages."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .captions import circumstances, size_of, work_name

WIDTH, BAR, GAP, MARGIN, LINE = 1100, 46, 30, 30, 24
LABEL = 130  # pixels for the names of sides
COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac")
INK, PALE = "#222222", "#888888"


def chart(tree: dict[str, Any]) -> Image.Image:
    """Draw a bar as long as the median for each side, with quartiles as a whisker, and a legend of the stages below."""
    sides = tree["sides"]
    stages = list(dict.fromkeys(name for side in sides.values() for name in side["stages"] or {"run": 0}))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(stages)}
    height = 2 * MARGIN + 2 * LINE + len(sides) * (BAR + GAP) + LINE * (1 + (len(stages) - 1) // 5)
    image = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    draw.text((MARGIN, MARGIN), _title(tree), INK, font)
    draw.text((MARGIN, MARGIN + LINE), f"{tree['device']}, {circumstances(tree)}", PALE, font)
    scale = (WIDTH - 2 * MARGIN - LABEL - 150) / max(side["high"] for side in sides.values())
    for number, (name, side) in enumerate(sides.items()):
        top = MARGIN + 2 * LINE + 12 + number * (BAR + GAP)
        draw.text((MARGIN, top + BAR // 3), name, INK, font)
        _bar(draw, side, top, scale, colors, font)
    _legend(draw, colors, height - MARGIN - LINE * (1 + (len(stages) - 1) // 5), font)
    return image


def _title(tree: dict[str, Any]) -> str:
    ratio = f": {tree['ratio']['time']['value']:.2f} times as fast" if tree["ratio"] else ""
    work = f"{work_name(tree)}, {tree['batch']} of {size_of(tree)}, {tree['precision']}"
    return f"{tree['model']['name']}, {work}{ratio}"


def _bar(draw: ImageDraw.ImageDraw, side: dict[str, Any], top: int, scale: float, colors: dict, font: Any) -> None:
    """Draw the bar of a side. Stages come from further rounds, so they are scaled to the median of the timed ones."""
    stages = side["stages"] or {"run": side["median"]}
    left, factor = float(MARGIN + LABEL), scale * side["median"] / (sum(stages.values()) or 1)
    for name, seconds in stages.items():
        draw.rectangle((left, top, left + seconds * factor, top + BAR), fill=colors[name])
        left += seconds * factor
    middle = top + BAR // 2
    low, high = (MARGIN + LABEL + side[key] * scale for key in ("low", "high"))
    draw.line((low, middle, high, middle), fill=INK, width=3)
    draw.text((max(left, high) + 10, top + BAR // 3), f"{1000 * side['median']:.4g} ms", INK, font)


def _legend(draw: ImageDraw.ImageDraw, colors: dict[str, str], top: int, font: Any) -> None:
    column = (WIDTH - 2 * MARGIN) // 5
    for number, (name, color) in enumerate(colors.items()):
        x, y = MARGIN + number % 5 * column, top + number // 5 * LINE
        draw.rectangle((x, y, x + 14, y + 14), fill=color)
        draw.text((x + 22, y - 2), name, INK, font)

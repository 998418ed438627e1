"""Strip below an image that shows the colours of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .colors import BLACK, WHITE, Color
from .typesetting import CAP_HEIGHT, SetText, set_text

MOST_ROWS = 12
MOST_WIDTH = 30  # of an entry, in font sizes


@dataclass(frozen=True)
class LegendEntry:
    """Class in a legend.

    Attributes:
        name: name of the class.
        color: its colour.
        count: number of its objects; None where they are not counted.
    """

    name: str
    color: Color
    count: int | None = None


def with_legend(image: Image.Image, entries: Sequence[LegendEntry], font_size: int) -> Image.Image:
    """Return an image with a strip below it that has entries in rows, as many as fit the rows.

    The strip has at most `MOST_ROWS` rows and as many as the image is high; its last entry counts those left out.
    """
    if not entries:
        return image
    gap, height = max(2, font_size // 2), round(1.6 * font_size)
    most_rows = max(1, min(MOST_ROWS, (image.height - gap) // height))
    rows = _rows(entries, font_size, gap, image.width, most_rows)
    left_out = len(entries) - sum(map(len, rows))
    joined = Image.new("RGB", (image.width, image.height + len(rows) * height + gap), WHITE)
    joined.paste(image, (0, 0))
    draw = ImageDraw.Draw(joined)
    top, left, baseline = image.height + gap // 2, gap, 0
    for row in rows:
        left, baseline = gap, round(top + (height + CAP_HEIGHT * font_size) / 2)
        for entry, text in row:
            upper = top + (height - font_size) // 2
            square = (left, upper, left + font_size - 1, upper + font_size - 1)
            draw.rounded_rectangle(square, radius=font_size // 5, fill=entry.color)
            text.draw(joined, left + font_size + round(0.7 * gap), baseline, BLACK)
            left += _width(text, font_size, gap)
        top += height
    if left_out:
        more = set_text(f"+ {left_out}", font_size)
        left = max(0, min(left, image.width - gap - more.width))
        draw.rectangle((left, top - height, image.width, top), fill=WHITE)
        more.draw(joined, left, baseline, BLACK)
    return joined


def _rows(
    entries: Sequence[LegendEntry], font_size: int, gap: int, width: int, most_rows: int
) -> list[list[tuple[LegendEntry, SetText]]]:
    """Return the first entries with their texts, in rows of an image's width, as many as fit `most_rows`."""
    rows: list[list[tuple[LegendEntry, SetText]]] = [[]]
    most, used = min(MOST_WIDTH * font_size, width - font_size - 3 * gap), 0
    for entry in entries:
        text = set_text(_text(entry), font_size, most)
        wide = _width(text, font_size, gap)
        if rows[-1] and used + wide > width - gap:
            if len(rows) == most_rows:
                break
            rows.append([])
            used = 0
        rows[-1].append((entry, text))
        used += wide
    return rows


def _width(text: SetText, font_size: int, gap: int) -> int:
    return font_size + 2 * gap + text.width


def _text(entry: LegendEntry) -> str:
    return entry.name if entry.count in (None, 1) else f"{entry.name} × {entry.count}"

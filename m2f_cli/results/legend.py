"""Strip below an image that shows the colours of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .colors import BLACK, WHITE, Color
from .typesetting import CAP_HEIGHT, set_text

MOST_ROWS = 12


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
    most = image.width - font_size - 3 * gap
    texts = [set_text(_text(entry), font_size, most) for entry in entries]
    rows = _rows([font_size + 2 * gap + text.width for text in texts], image.width - gap)
    shown = rows[: max(1, min(MOST_ROWS, image.height // height))]
    strip = Image.new("RGB", (image.width, len(shown) * height + gap), WHITE)
    draw = ImageDraw.Draw(strip)
    left_out = len(entries) - sum(map(len, shown))
    more = set_text(f"+ {left_out}", font_size) if left_out else None
    for row, numbers in enumerate(shown):
        top, left = gap // 2 + row * height, gap
        baseline = round(top + (height + CAP_HEIGHT * font_size) / 2)
        for number in numbers:
            upper = top + (height - font_size) // 2
            square = (left, upper, left + font_size - 1, upper + font_size - 1)
            draw.rounded_rectangle(square, radius=font_size // 5, fill=entries[number].color)
            texts[number].draw(strip, left + font_size + round(0.7 * gap), baseline, BLACK)
            left += font_size + 2 * gap + texts[number].width
        if more is not None and row == len(shown) - 1:
            left = max(0, min(left, image.width - gap - more.width))
            draw.rectangle((left, top, image.width, top + height), fill=WHITE)
            more.draw(strip, left, baseline, BLACK)
    joined = Image.new("RGB", (image.width, image.height + strip.height), WHITE)
    joined.paste(image, (0, 0))
    joined.paste(strip, (0, image.height))
    return joined


def _text(entry: LegendEntry) -> str:
    return entry.name if entry.count in (None, 1) else f"{entry.name} × {entry.count}"


def _rows(widths: Sequence[float], most: float) -> list[list[int]]:
    """Return the positions of entries in rows of a width."""
    rows: list[list[int]] = [[]]
    used = 0.0
    for number, width in enumerate(widths):
        if rows[-1] and used + width > most:
            rows.append([])
            used = 0.0
        rows[-1].append(number)
        used += width
    return rows

"""Colours of regions on images, and the ink of text on them."""

from __future__ import annotations

import colorsys
import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from ..structures.categories import Categories, Category

Color = tuple[int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GOLDEN = 0.618  # the golden ratio spreads consecutive numbers, so that no two consecutive objects look alike
# The colours of Okabe and Ito without black (jfly.uni-koeln.de/color, 2008), and more that stay as far apart from all
# others as those do (CIE 1976, distance 16), in normal vision and without red, green or blue cones.
COLOR_BLIND: tuple[Color, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (135, 0, 240),
    (105, 45, 15),
    (195, 255, 165),
    (0, 255, 210),
    (150, 120, 255),
    (240, 0, 75),
    (75, 60, 180),
    (105, 45, 120),
    (165, 195, 135),
)


def colors_of(labels: Sequence[int], categories: Categories, palette: str, *, plain: bool) -> list[Color]:
    """Return the colours of the regions of an image.

    Args:
        labels: class number of each region.
        categories: the classes.
        palette: a name of `draw_options.PALETTES`.
        plain: True for one colour for each class, False for objects of one class that are told apart.
    """
    own = color_blind(labels) if palette == "color-blind" else {}
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        nth = 0 if plain else seen[label]
        seen[label] += 1
        if own:
            colors.append(_lighter(own[label], 0.45 * (GOLDEN * nth % 1)))
        else:
            colors.append(categories[label].color if plain else region_color(categories[label], nth))
    return colors


def color_blind(labels: Iterable[int]) -> dict[int, Color]:
    """Return a colour of `COLOR_BLIND` for each class of an image.

    A class has the same colour on all images, unless a class with a lower number has taken it: then it has the next
    that is free. Above 16 classes, colours occur again.
    """
    taken: dict[int, Color] = {}
    for label in sorted(set(labels)):
        turned = [COLOR_BLIND[(label + i) % len(COLOR_BLIND)] for i in range(len(COLOR_BLIND))]
        taken[label] = next((color for color in turned if color not in taken.values()), turned[0])
    return taken


@functools.lru_cache(maxsize=4096)
def region_color(category: Category, nth: int = 0) -> Color:
    """Return the colour of the nth region of a class: near the class's own, brighter for things, muted for stuff."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in category.color))
    if category.isthing:
        value = max(value, 0.85)
        saturation = max(saturation, 0.6) if saturation > 0.1 else saturation
    else:
        saturation, value = 0.8 * saturation, min(max(value, 0.4), 0.8)
    shift = (GOLDEN * nth + 0.5) % 1 - 0.5
    saturation *= 1 - 0.5 * (0.5 * GOLDEN * nth % 1)
    red, green, blue = colorsys.hsv_to_rgb((hue + 0.16 * shift) % 1, saturation, value * (1 - 0.5 * abs(shift)))
    return round(255 * red), round(255 * green), round(255 * blue)


def outline_color(color: Color) -> Color:
    """Return the colour of the outline of a region, which stands out from its own fill."""
    return _lighter(color, 0.25)


def _lighter(color: Color, share: float) -> Color:
    red, green, blue = (round((1 - share) * channel + share * 255) for channel in color)
    return red, green, blue


def ink_for(color: Color) -> Color:
    """Return black or white, the one of higher contrast (WCAG 2 relative luminance); the ratio is never below 4.5."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else WHITE

"""Drawings of results over images: translucent fills, thin outlines, and labels that stay readable on any colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError
from ..structures.categories import Categories
from ..structures.images import read_image
from .class_names import numbers_of, short_name
from .colors import Color, colors_of, outline_color, region_color
from .draw_options import DrawOptions
from .labels import RegionLabel, spots, write_labels
from .legend import LegendEntry, with_legend
from .regions import Region, TopMap
from .typesetting import is_drawable, look_for

if TYPE_CHECKING:
    from .types import Result

THING_OPACITY, STUFF_OPACITY = 0.5, 0.35
LINES, FONTS = 650, 50  # as many lines and font sizes are the square root of an image's area
SMALLEST_FONT = 11
BAND = 2**21  # pixels that are painted at once


def plot(result: Result, image: Any, options: DrawOptions | None = None) -> Image.Image:
    """Draw a result over its image: a colour for each class, slightly varied for each object, with names and scores.

    Args:
        result: the result.
        image: the image of the result's size, as a path, a PIL image or an array.
        options: what is drawn, and how.

    Returns:
        A new RGB image of the image's size, higher with a legend. Stuff is muted, and things are bright. Small regions
        carry no label. A label that would cover another one moves, or is left out.

    Raises:
        DataError: there is no image, it cannot be read, or it has another size.
        ConfigError: the options name a class that the result does not have.
    """
    options = options or DrawOptions()
    drawn = Image.fromarray(image_of(result, image))
    categories = result.categories
    top = result.on_top(numbers_of(options.classes, categories) if options.classes else None)
    colors = colors_of(top.labels, categories, options.palette, plain=result.task == "semantic")
    scale = (drawn.width * drawn.height) ** 0.5
    line, font_size = max(1, round(scale / LINES)), max(SMALLEST_FONT, round(scale / FONTS))
    _paint(drawn, top, colors, categories, options, line)
    if "boxes" in options.parts:
        _boxes(drawn, top, colors, categories, line)
    is_labelled, is_scored = "labels" in options.parts, "scores" in options.parts
    if not (is_labelled or is_scored or options.legend):
        return drawn
    look_for(" ".join(category.name for category in categories))
    names = shown_names(top.labels, categories)
    labels = []
    for spot in spots(top.numbers_HW):
        label, score = top.labels[spot.number - 1], top.scores[spot.number - 1]
        name = names[label] if is_labelled else ""
        number = f"{score:.2f}" if is_scored and score is not None else ""
        if (name or number) and spot.carries(font_size):
            labels.append(RegionLabel(name, number, colors[spot.number - 1], spot))
    write_labels(drawn, labels, font_size)
    if options.legend:
        drawn = with_legend(drawn, _legend(top, colors, names, counted=result.task != "semantic"), font_size)
    return drawn


def legend_of(result: Result) -> list[LegendEntry]:
    """Return the classes of a drawing with the colours that it has by default, those with the most pixels first."""
    top, categories = result.on_top(), result.categories
    colors = colors_of(top.labels, categories, DrawOptions().palette, plain=result.task == "semantic")
    return _legend(top, colors, shown_names(top.labels, categories), counted=result.task != "semantic")


def colored(result: Result) -> Iterator[tuple[Region, Color]]:
    """Yield the regions of a result with their colours; in a semantic map exactly the colours of the categories."""
    seen: Counter[int] = Counter()
    for region in result.regions():
        category = result.categories[region.label]
        plain = result.task == "semantic"
        yield region, category.color if plain else region_color(category, seen[region.label])
        seen[region.label] += 1


def shown_names(labels: Sequence[int], categories: Categories) -> dict[int, str]:
    """Return the names of classes as they are drawn, by class number.

    COCO's names are shortened. A name of which no font has a character becomes "class" and the class's id.
    """
    names = {category.name for category in categories}
    shown = {}
    for label in set(labels):
        name = short_name(categories[label].name, names)
        shown[label] = name if is_drawable(name) else f"class {categories[label].id}"
    return shown


def image_of(result: Result, image: Any) -> np.ndarray:
    """Return an image of a result's size as RGB pixels (H, W, 3, uint8).

    Args:
        result: the result.
        image: the image, as a path, a PIL image or an array.

    Raises:
        DataError: there is no image, it cannot be read, or it has another size.
    """
    if image is None:
        raise DataError("The result does not know its image.", hint="Pass it: result.plot(image).")
    canvas_HW3 = read_image(image)
    if canvas_HW3.shape[:2] != tuple(result.size):
        height, width = result.size
        raise DataError(
            f"The image is {canvas_HW3.shape[1]}x{canvas_HW3.shape[0]} pixels, the result {width}x{height}.",
            hint="Pass the image that the result was made from.",
        )
    return canvas_HW3


def _paint(
    image: Image.Image,
    top: TopMap,
    colors: Sequence[Color],
    categories: Categories,
    options: DrawOptions,
    line: int,
) -> None:
    """Paint masks and outlines of all regions, in bands of rows that need little memory."""
    fills, edges = (np.zeros((len(colors) + 1, 4), dtype=np.uint8) for _ in range(2))
    if colors:
        usual = [THING_OPACITY if categories[label].isthing else STUFF_OPACITY for label in top.labels]
        opacities = np.array(usual if options.opacity is None else options.opacity)
        fills[1:, :3] = colors
        fills[1:, 3] = np.rint(255 * opacities) if "masks" in options.parts else 0
        edges[1:, :3] = [outline_color(color) for color in colors]
        edges[1:, 3] = 255
    fill_N, edge_N = fills.view(np.uint32)[:, 0], edges.view(np.uint32)[:, 0]
    height, width = top.numbers_HW.shape
    rows = max(1, BAND // width)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        numbers_HW = top.numbers_HW[first:last]
        paint_HW = np.take(fill_N, numbers_HW)
        if "outlines" in options.parts:
            above = min(line, first)
            around_HW = top.numbers_HW[first - above : last + line]
            is_edge_HW = _borders(around_HW, line)[above : above + last - first] & (numbers_HW > 0)
            paint_HW[is_edge_HW] = edge_N[numbers_HW[is_edge_HW]]
        paint = Image.fromarray(paint_HW.view(np.uint8).reshape(*numbers_HW.shape, 4))
        image.paste(paint, (0, first), paint)


def _borders(numbers_HW: np.ndarray, line: int) -> np.ndarray:
    """Tell which pixels are at most `line` pixels from another region. The frame of the image is no border."""
    if numbers_HW.dtype != np.uint16:
        numbers_HW = numbers_HW.astype(np.float32)  # OpenCV compares no int32
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    is_border_HW: np.ndarray = cv2.erode(numbers_HW, kernel) != cv2.dilate(numbers_HW, kernel)
    return is_border_HW


def _boxes(image: Image.Image, top: TopMap, colors: Sequence[Color], categories: Categories, line: int) -> None:
    """Draw the boxes of things, the first region's last."""
    draw = ImageDraw.Draw(image)
    for position, (upper, left, lower, right) in sorted(top.all_boxes().items(), reverse=True):
        if categories[top.labels[position]].isthing:
            draw.rectangle((left, upper, right - 1, lower - 1), outline=outline_color(colors[position]), width=line)


def _legend(top: TopMap, colors: Sequence[Color], names: dict[int, str], *, counted: bool) -> list[LegendEntry]:
    """Return the classes of an image, those with the most pixels first, in the colours of their largest regions."""
    region_areas = np.bincount(top.numbers_HW.ravel(), minlength=len(top.labels) + 1)[1:]
    areas: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    firsts: dict[int, Color] = {}
    for position in np.argsort(-region_areas, kind="stable").tolist():
        label, area = top.labels[position], int(region_areas[position])
        if area:
            areas[label] += area
            counts[label] += 1
            firsts.setdefault(label, colors[position])
    shown = [label for label, _ in areas.most_common()]
    return [LegendEntry(names[label], firsts[label], counts[label] if counted else None) for label in shown]

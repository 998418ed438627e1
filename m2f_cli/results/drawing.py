"""Drawings of results over images: translucent fills, crisp outlines, and labels that stay readable on any colour."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
from ..runtime.text import visible_line
from ..structures.categories import Category
from ..structures.images import read_image
from .regions import Region

if TYPE_CHECKING:
    from .types import Result

Color = tuple[int, int, int]

THING_ALPHA, STUFF_ALPHA = 0.55, 0.4
SPOT_EDGE = 192  # longest edge of the mask in which the spot of a label is searched
LONGEST_NAME = 200  # letters; a longer label would fit no image
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def plot(result: Result, image: Any) -> Image.Image:
    """Draw a result over its image: a colour for each class, slightly varied for each object, with names and scores.

    Args:
        result: the result.
        image: the image of the result's size, as a path, a PIL image or an array.

    Returns:
        A new RGB image of the image's size. Stuff is muted, and things are bright. Small regions carry no label. A
        label that would cover another one moves, or is left out.

    Raises:
        DataError: there is no image, it cannot be read, or it has another size.
    """
    canvas_HW3 = _canvas(result, image)
    scale = np.sqrt(canvas_HW3.shape[0] * canvas_HW3.shape[1])
    line = max(1, round(scale / 500))
    font_size = max(9, round(scale / 50))
    labels = []
    for region, color in colored(result.backwards()):
        category = result.categories[region.label]
        _fill(canvas_HW3, region, color, THING_ALPHA if category.isthing else STUFF_ALPHA)
        _outline(canvas_HW3, region, color, line)
        if (spot := label_spot(region, font_size)) is not None:
            name = visible_line(category.name[:LONGEST_NAME])
            text = name if region.score is None else f"{name} {region.score:.2f}"
            labels.append(_Label(text, color, spot, region.area))
    drawn = Image.fromarray(canvas_HW3)
    write_label(drawn, labels, font_size)
    return drawn


def colored(result: Result) -> Iterator[tuple[Region, Color]]:
    """Yield the regions of a result with their colours; in a semantic map exactly the colours of the categories."""
    seen: Counter[int] = Counter()
    for region in result.regions():
        category = result.categories[region.label]
        plain = result.task == "semantic"
        yield region, category.color if plain else region_color(category, seen[region.label])
        seen[region.label] += 1


def region_color(category: Category, nth: int = 0) -> Color:
    """Return the colour of the nth region of a class: near the class's own, brighter for things, muted for stuff."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in category.color))
    if category.isthing:
        value = max(value, 0.85)
        saturation = max(saturation, 0.6) if saturation > 0.1 else saturation
    else:
        saturation, value = 0.8 * saturation, min(max(value, 0.4), 0.8)
    # The golden ratio spreads consecutive numbers, so that no two consecutive objects look alike.
    shift = (0.618 * nth + 0.5) % 1 - 0.5
    red, green, blue = colorsys.hsv_to_rgb((hue + 0.09 * shift) % 1, saturation, value * (1 - 0.35 * abs(shift)))
    return round(255 * red), round(255 * green), round(255 * blue)


def _canvas(result: Result, image: Any) -> np.ndarray:
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


def _fill(canvas_HW3: np.ndarray, region: Region, color: Color, alpha: float) -> None:
    patch = canvas_HW3[region.window]
    ramp = np.arange(256)[:, None] * (1 - alpha) + np.array(color) * alpha
    blended = cv2.LUT(np.ascontiguousarray(patch), np.rint(ramp).astype(np.uint8)[None])
    np.copyto(patch, blended, where=region.mask_HW[..., None])


def _outline(canvas_HW3: np.ndarray, region: Region, color: Color, line: int) -> None:
    """Paint the border pixels of a region, inside it. The frame of the image is no border."""
    height, width = canvas_HW3.shape[:2]
    top, left, bottom, right = region.box
    up, before = min(line, top), min(line, left)
    padding = ((up, min(line, height - bottom)), (before, min(line, width - right)))
    mask = np.pad(region.mask_HW, padding).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    inner = cv2.erode(mask, kernel)[up : up + bottom - top, before : before + right - left]
    lighter = [round(0.6 * channel + 0.4 * 255) for channel in color]  # so that it stands out from its own fill
    canvas_HW3[region.window][region.mask_HW & (inner == 0)] = lighter


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Label:
    text: str
    color: Color
    spot: tuple[float, float]
    area: int


def label_spot(region: Region, font_size: int) -> tuple[float, float] | None:
    """Return the visual centre (x, y) of a region; None if the region is too small for a label.

    The centre is the most central of the points that lie deep inside the region.
    """
    height, width = region.mask_HW.shape
    shrink = max(1.0, max(height, width) / SPOT_EDGE)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    small = cv2.resize(region.mask_HW.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    depth = cv2.distanceTransform(np.pad(small, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    if region.area < 3 * font_size**2 or depth.max() * shrink < 0.4 * font_size:
        return None
    ys, xs = np.nonzero(depth >= 0.8 * depth.max())
    all_ys, all_xs = np.nonzero(small)
    nearest = np.argmin((ys - all_ys.mean()) ** 2 + (xs - all_xs.mean()) ** 2)
    return (
        region.box[1] + (xs[nearest] + 0.5) * width / size[0],
        region.box[0] + (ys[nearest] + 0.5) * height / size[1],
    )


def write_label(image: Image.Image, labels: list[_Label], font_size: int) -> None:
    """Draw labels onto an image, the largest region's first; a label without free space is left out."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(font_size)
    margin = max(1, font_size // 5)
    placed: list[tuple[float, float, float, float]] = []
    for label in sorted(labels, key=lambda label: -label.area):
        width = draw.textlength(label.text, font=font)
        # All boxes have the same height, whatever letters they hold, so that a row of labels is even.
        size = (width + 3 * margin, 1.25 * font_size + margin)
        box = place_label(label.spot, size, image.size, placed)
        if box is None:
            continue
        placed.append(box)
        draw.rounded_rectangle(box, radius=margin, fill=label.color)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(middle, label.text, font=font, fill=ink_for(label.color), anchor="mm")


def place_label(
    spot: tuple[float, float],
    size: tuple[float, float],
    image: tuple[int, int],
    placed: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, float] | None:
    """Return a free box (left, top, right, bottom) inside the image for a label near its spot, or None."""
    width, height = size
    if width > image[0] or height > image[1]:
        return None
    for across, down in ((0, 0), (0, -1.1), (0, 1.1), (0, -2.2), (0, 2.2), (-0.5, 0), (0.5, 0)):
        left = min(max(spot[0] - width / 2 + across * width, 0), image[0] - width)
        top = min(max(spot[1] - height / 2 + down * height, 0), image[1] - height)
        box = (left, top, left + width, top + height)
        if not any(_meet(box, other) for other in placed):
            return box
    return None


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def ink_for(color: Color) -> Color:
    """Return black or white, the one of higher contrast (WCAG 2 relative luminance); the ratio is never below 4.5."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else WHITE

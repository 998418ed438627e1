"""Labels of regions: where each stands best, without covering another, and its text on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .colors import Color, ink_for
from .typesetting import CAP_HEIGHT, set_text

SPOT_EDGE = 512  # longest edge of the map in which the spots of labels are searched
MOST_WIDTH = 24  # of a name, in font sizes
MOST_COVERED = 0.2  # share of an image that labels may cover
Box = tuple[float, float, float, float]
# Steps (of the width, of the height) from the spot of a label to where it may stand, the nearest first.
_STEPS_K2 = np.array(
    sorted(
        ((across, down) for across in (0.0, -0.5, 0.5, -1.0, 1.0) for down in (0.0, -1.1, 1.1, -2.2, 2.2)),
        key=lambda step: abs(step[0]) + 0.45 * abs(step[1]),
    )
)


@dataclass(frozen=True)
class Spot:
    """Place of a region on its map.

    Attributes:
        number: number of the region, from 1 on.
        center: (x, y) in pixels: the most central of the points that lie deep inside.
        area: pixels, about.
        depth: distance in pixels from the deepest point to the edge, about.
    """

    number: int
    center: tuple[float, float]
    area: int
    depth: float

    def carries(self, font_size: int) -> bool:
        """Tell whether the region is large enough for a label."""
        return self.area >= 3 * font_size**2 and self.depth >= 0.2 * font_size


@dataclass(frozen=True)
class RegionLabel:
    """Label of a region.

    Attributes:
        name: name of the class; empty for a score alone.
        score: the score as text; empty without one.
        color: colour of the region.
        place: place of the region.
    """

    name: str
    score: str
    color: Color
    place: Spot


def spots(numbers_HW: np.ndarray) -> list[Spot]:
    """Return the places of all regions of a map (0: none), by number, from one pass over its pixels.

    Large maps are thinned out first: regions that are smaller than the steps between two pixels may be missing.
    """
    step = max(1, -(-max(numbers_HW.shape) // SPOT_EDGE))
    small = np.ascontiguousarray(numbers_HW[step // 2 :: step, step // 2 :: step])
    if not small.size:
        small, step = numbers_HW, 1
    depths = _depths(small).ravel()
    order = np.argsort(small.ravel(), kind="stable")
    numbers, depths = small.ravel()[order], depths[order]
    firsts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    counts = np.diff(firsts, append=numbers.size)
    ys, xs = np.divmod(order, small.shape[1])

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, counts)

    deepest = np.maximum.reduceat(depths, firsts)
    off_x, off_y = (each - spread(np.add.reduceat(each, firsts) / counts) for each in (xs, ys))
    distances = np.where(depths >= 0.8 * spread(deepest), off_x**2 + off_y**2, np.inf)
    central = np.flatnonzero(distances == spread(np.minimum.reduceat(distances, firsts)))
    central = central[np.searchsorted(central, firsts)]  # the first of each region
    found = zip(numbers[firsts].tolist(), xs[central], ys[central], counts.tolist(), deepest.tolist(), strict=True)
    half = step // 2 + 0.5
    return [
        Spot(number, (float(x * step + half), float(y * step + half)), count * step**2, depth * step)
        for number, x, y, count, depth in found
        if number
    ]


def _depths(numbers_HW: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the next one of another region, or to the frame."""
    inside = np.zeros((numbers_HW.shape[0] + 2, numbers_HW.shape[1] + 2), dtype=np.uint8)
    inside[1:-1, 1:-1] = 1
    across = numbers_HW[:, 1:] == numbers_HW[:, :-1]
    down = numbers_HW[1:] == numbers_HW[:-1]
    inside[1:-1, 2:-1] &= across
    inside[1:-1, 1:-2] &= across
    inside[2:-1, 1:-1] &= down
    inside[1:-2, 1:-1] &= down
    depths: np.ndarray = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    return depths + 0.5


def write_labels(image: Image.Image, labels: Sequence[RegionLabel], font_size: int) -> None:
    """Draw labels onto an image, the largest region's first; a label without free space is left out."""
    draw = ImageDraw.Draw(image)
    margin = max(2, round(0.25 * font_size))
    # All boxes have the same height, whatever letters they hold, so that a row of labels is even.
    height = font_size + 2 * max(1, margin // 2)
    placed = np.empty((len(labels), 4))
    count, left_over = 0, MOST_COVERED * image.width * image.height
    for label in sorted(labels, key=lambda label: -label.place.area):
        score = set_text(label.score, font_size)
        gap = round(0.3 * font_size) if label.name and label.score else 0
        most = min(MOST_WIDTH * font_size, image.width - 2 * margin - score.width - gap)
        name = set_text(label.name, font_size, most)
        size = (name.width + gap + score.width + 2 * margin, height)
        box = place_label(_beside(label.place, size), size, image.size, placed[:count])
        if box is None or size[0] * height > left_over:
            continue
        left_over -= size[0] * height
        placed[count] = box
        count += 1
        left, top, right, bottom = map(round, box)
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=margin, fill=label.color)
        baseline, ink = round(top + (height + CAP_HEIGHT * font_size) / 2), ink_for(label.color)
        name.draw(image, left + margin, baseline, ink)
        score.draw(image, left + margin + name.width + gap, baseline, ink)


def _beside(place: Spot, size: tuple[float, float]) -> tuple[float, float]:
    """Return where a label stands best: in the middle of its region, or above one that it would hide."""
    x, y = place.center
    width, height = size
    is_hidden = place.area < 1.5 * width * height or place.depth < height / 3
    return (x, y - place.depth - height / 2 - 1) if is_hidden else (x, y)


def place_label(
    spot: tuple[float, float], size: tuple[float, float], image: tuple[int, int], placed_N4: np.ndarray
) -> Box | None:
    """Return a free box (left, top, right, bottom) inside the image for a label near its spot, or None.

    Args:
        spot: (x, y) in pixels.
        size: (width, height) of the label.
        image: (width, height) of the image.
        placed_N4: boxes of other labels.
    """
    width, height = size
    most_left, most_top = image[0] - width, image[1] - height
    if min(most_left, most_top) < 0:
        return None
    lefts = np.minimum(np.maximum(spot[0] + width * (_STEPS_K2[:, :1] - 0.5), 0), most_left)
    tops = np.minimum(np.maximum(spot[1] + height * (_STEPS_K2[:, 1:] - 0.5), 0), most_top)
    others = placed_N4.T
    meets_KN = (lefts < others[2]) & (others[0] < lefts + width) & (tops < others[3]) & (others[1] < tops + height)
    is_free_K = ~meets_KN.any(axis=1)
    best = int(np.argmax(is_free_K))
    if not is_free_K[best]:
        return None
    left, top = float(lefts[best, 0]), float(tops[best, 0])
    return left, top, left + width, top + height

"""Generated scenes with exact masks: overlapping shapes (things) before a landscape of textures (stuff).

A scene is a function of its arguments alone and is the same image on every platform. To that end, pixels are computed
with integer arithmetic, IEEE's + - * / and OpenCV's bit-exact operations on bytes. Values from sine and cosine are
first rounded to a fraction of a pixel.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...errors import ConfigError
from ...results.types import Instances, PanopticMap, Segment, SemanticMap
from ...structures.categories import Categories, from_names
from ...structures.rle import encode_ids

THINGS = {"circle": (220, 20, 60), "triangle": (250, 220, 0), "rectangle": (20, 60, 230), "star": (230, 40, 220)}
STUFF = {
    "sky": (70, 130, 180),
    "brick": (160, 82, 45),
    "water": (0, 100, 110),
    "sand": (222, 190, 120),
    "grass": (90, 160, 50),
}
COLORS = {**THINGS, **STUFF}
CATEGORIES: Categories = tuple(
    dataclasses.replace(category, color=COLORS[category.name]) for category in from_names([*COLORS], things=THINGS)
)
LABELS = {category.name: label for label, category in enumerate(CATEGORIES)}

FULL = 240  # full coverage; a multiple of 16, so that the mean over 4 x 4 samples is a whole number
SAMPLES = 4  # samples per pixel along each edge
LEAST_VISIBLE = 0.2  # visible share below which an object is left out
LEAST_EDGE = 16  # pixels
SHADOW = 0.5  # share of the light that the middle of a shadow lacks


@dataclass
class Scene:
    """Generated image with its annotation.

    Attributes:
        image_HW3: uint8 RGB.
        ids_HW: int32, the id of the segment that each pixel belongs to. Every pixel has one.
        segments: segments with the ids 1, 2, …, back to front. `label` is a class number of CATEGORIES; the score is 1.
    """

    image_HW3: np.ndarray
    ids_HW: np.ndarray
    segments: list[Segment]

    @property
    def size(self) -> tuple[int, int]:
        return self.ids_HW.shape

    def panoptic(self) -> PanopticMap:
        return PanopticMap(self.size, CATEGORIES, self.ids_HW, self.segments, image=self.image_HW3)

    def semantic(self) -> SemanticMap:
        lookup = np.zeros(len(self.segments) + 1, dtype=np.uint8)
        for segment in self.segments:
            lookup[segment.id] = segment.label
        return SemanticMap(self.size, CATEGORIES, lookup[self.ids_HW], image=self.image_HW3)

    def instances(self) -> Instances:
        """Return the visible part of each object, nearest first."""
        objects = [segment for segment in reversed(self.segments) if CATEGORIES[segment.label].isthing]
        rles = encode_ids(self.ids_HW, (segment.id for segment in objects))
        labels_N = np.array([segment.label for segment in objects], dtype=np.int64)
        return Instances(self.size, CATEGORIES, labels_N, np.ones(len(objects)), rles, image=self.image_HW3)


def scene(
    seed: int, height: int = 320, width: int = 480, *, objects: tuple[int, int] = (3, 8), difficulty: float = 0.5
) -> Scene:
    """Generate a scene.

    Args:
        seed: any whole number from 0 on. The same arguments give the same image.
        height: height in pixels, at least 16.
        width: width in pixels, at least 16.
        objects: least and largest number of objects. An object that others hide almost completely is left out.
        difficulty: 0 to 1. Higher values give smaller, more rotated and squeezed objects, paler colours and more grain.

    Raises:
        ConfigError: an edge is shorter than 16 pixels, or `objects` or `difficulty` is out of range.
    """
    least, most = objects
    if min(height, width) < LEAST_EDGE:
        raise ConfigError(f"A scene has at least {LEAST_EDGE} x {LEAST_EDGE} pixels, not {height} x {width}.")
    if not (0 <= least <= most and 0 <= difficulty <= 1):
        raise ConfigError(f"objects = {objects} and difficulty = {difficulty} should be (least, most) and 0 to 1.")
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = _Canvas(height, width)
    for layer in _landscape(rng, height, width):
        canvas.lay(layer)
    count = int(rng.integers(least, most + 1))
    for shape in visible_layers([_shape(rng, height, width, difficulty) for _ in range(count)], height, width):
        canvas.darken(shape.shadow(_unit(height, width)))
        canvas.lay(shape)
    return canvas.finish(_grain(rng, height, width, 3 + 12 * difficulty))


# --- painting ---------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """Window with one object or texture to paint.

    Attributes:
        label: class number.
        top: row of the window's upper edge in the image. The window may reach beyond the image.
        left: column of the window's left edge.
        cover_hw: share of each pixel that is covered, 0 to FULL. A pixel belongs to the layer from half coverage on.
        colors_3hw: colours, 0 to 255, float32.
        soft_hw: blurred coverage, from which things get their light and shadow. None for stuff.
    """

    label: int
    top: int
    left: int
    cover_hw: np.ndarray
    colors_3hw: np.ndarray
    soft_hw: np.ndarray | None = None

    def shadow(self, unit: int) -> Layer:
        """Return the soft shadow, displaced to the lower right. Its coverage is the strength of the shadow."""
        return dataclasses.replace(self, top=self.top + 3 * unit, left=self.left + 2 * unit, cover_hw=self.soft_hw)

    def clipped(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the window of the image that the layer covers, and the window of the layer that lies in the image."""
        rows, columns = (
            slice(max(start, 0), max(min(start + length, edge), max(start, 0)))
            for start, length, edge in zip((self.top, self.left), self.cover_hw.shape, (height, width), strict=True)
        )
        own_rows = slice(rows.start - self.top, rows.stop - self.top)
        return (rows, columns), (own_rows, slice(columns.start - self.left, columns.stop - self.left))


class _Canvas:
    def __init__(self, height: int, width: int):
        self.size = height, width
        self.image_3HW = np.zeros((3, height, width), dtype=np.float32)  # planes, which are faster to paint
        self.ids_HW = np.zeros((height, width), dtype=np.int32)
        self.labels = [-1]  # class number of each id

    def lay(self, layer: Layer) -> None:
        image_window, layer_window = layer.clipped(*self.size)
        cover = layer.cover_hw[layer_window]
        patch = self.image_3HW[(slice(None), *image_window)]
        patch += cover.astype(np.float32) / FULL * (layer.colors_3hw[(slice(None), *layer_window)] - patch)
        self.ids_HW[image_window][cover >= FULL // 2] = len(self.labels)
        self.labels.append(layer.label)

    def darken(self, shadow: Layer) -> None:
        image_window, layer_window = shadow.clipped(*self.size)
        strength = shadow.cover_hw[layer_window].astype(np.float32) * np.float32(SHADOW / FULL)
        self.image_3HW[(slice(None), *image_window)] *= 1 - strength

    def finish(self, grain_HW: np.ndarray) -> Scene:
        bytes_3HW = np.clip(np.rint(self.image_3HW + grain_HW), 0, 255).astype(np.uint8)
        areas = np.bincount(self.ids_HW.ravel(), minlength=len(self.labels))
        present = np.flatnonzero(areas)
        renumbered = np.zeros(len(self.labels), dtype=np.int32)
        renumbered[present] = np.arange(1, len(present) + 1)
        segments = [Segment(i + 1, self.labels[old], 1.0, int(areas[old])) for i, old in enumerate(present)]
        return Scene(cv2.merge([*bytes_3HW]), renumbered[self.ids_HW], segments)


def _unit(height: int, width: int) -> int:
    """Return the size of a detail, in pixels."""
    return max(1, min(height, width) // 160)


def _mix(low: Sequence[float], high: Sequence[float], t_hw: np.ndarray) -> np.ndarray:
    """Interpolate between two colours by `t_hw` from 0 to 1. The result is (3, h, w)."""
    low, high = _plain(low), _plain(high)
    return low + t_hw * (high - low)


def _plain(color: Sequence[float]) -> np.ndarray:
    return np.array(color, dtype=np.float32)[:, None, None]


def _noise(rng: np.random.Generator, height: int, width: int, cell_y: int, cell_x: int) -> np.ndarray:
    """Return smooth noise (height, width), 0 to 1: random values every `cell` pixels, linearly interpolated."""
    small = rng.integers(0, 256, (height // cell_y + 2, width // cell_x + 2), dtype=np.uint8)
    size = (small.shape[1] * cell_x, small.shape[0] * cell_y)
    large = small if size == small.shape[::-1] else cv2.resize(small, size, interpolation=cv2.INTER_LINEAR_EXACT)
    return large[:height, :width].astype(np.float32) / 255


def _grain(rng: np.random.Generator, height: int, width: int, strength: float) -> np.ndarray:
    values = rng.integers(0, 256, (2, height, width), dtype=np.uint8).astype(np.float32)
    return (values[0] - values[1]) * np.float32(strength / 255)


# --- stuff ------------------------------------------------------------------------------------------------------------


def _landscape(rng: np.random.Generator, height: int, width: int) -> list[Layer]:
    """Return layers that together cover the image: the sky, often a wall before it, then one or two grounds."""
    unit = _unit(height, width)
    sky = Layer(LABELS["sky"], 0, 0, np.full((height, width), FULL, np.uint8), _sky(rng, height, width, unit))
    horizon = 0.35 + 0.25 * rng.random()
    walls = [_wall(rng, height, width, horizon)] if rng.random() < 0.6 else []
    far, near = map(str, rng.permutation([*GROUNDS])[:2])
    grounds = [_ground(rng, far, height, width, horizon, 0.01 if far == "water" else 0.04)]
    if rng.random() < 0.75:
        level = horizon + (0.85 - horizon) * (0.35 + 0.5 * rng.random())
        grounds.append(_ground(rng, near, height, width, level, 0.08))
    return [sky, *walls, *grounds]


def _ground(rng: np.random.Generator, name: str, height: int, width: int, level: float, waves: float) -> Layer:
    """Return the ground below a wavy line.

    Args:
        level: mean of the line, as a share of the height.
        waves: amplitude of the line, as a share of the height.
    """
    x = np.arange(width) / width
    line = np.full(width, level * height)
    for frequency in (0.7, 1.9):
        line += waves / frequency * height * np.sin(2 * math.pi * (frequency * x + rng.random()))
    line = np.rint(line * 64) / 64
    top = max(0, int(line.min()))
    below = np.clip(np.arange(top + 1, height + 1)[:, None] - line, 0, 1)
    texture = GROUNDS[name](rng, height - top, width, _unit(height, width))
    return Layer(LABELS[name], top, 0, np.rint(below * FULL).astype(np.uint8), texture)


def _wall(rng: np.random.Generator, height: int, width: int, horizon: float) -> Layer:
    left, right = int((0.6 * rng.random() - 0.1) * width), int((0.55 + 0.55 * rng.random()) * width)
    top = int((0.05 + 0.4 * rng.random()) * horizon * height)
    bottom = min(height, int((horizon + 0.15) * height))
    size = bottom - top, max(right - left, width // 5)
    return Layer(LABELS["brick"], top, left, np.full(size, FULL, np.uint8), _brick(rng, *size, _unit(height, width)))


def _sky(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    blue = _mix((64, 124, 204), (190, 222, 246), np.linspace(0, 1, height, dtype=np.float32)[:, None])
    octaves = ((0.6, 28 * unit), (0.3, 12 * unit), (0.1, 4 * unit))
    clouds = sum(share * _noise(rng, height, width, cell, 2 * cell) for share, cell in octaves)
    t = np.clip((clouds - 0.5) * 4, 0, 1)
    return blue + 0.8 * t * t * (3 - 2 * t) * (250 - blue)


def _brick(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    tall, wide, joint = 7 * unit, 16 * unit, unit
    y, x = np.arange(height)[:, None], np.arange(width)
    row = y // tall
    shifted = x + row % 2 * (wide // 2)
    tones = rng.random((height // tall + 1, width // wide + 2), dtype=np.float32)
    bricks = _mix((142, 58, 44), (196, 104, 76), tones[row, shifted // wide])
    is_joint = (y % tall < joint) | (shifted % wide < joint)
    light = 0.94 + 0.12 * _noise(rng, height, width, 2 * unit, 2 * unit)
    return np.where(is_joint, _plain((196, 188, 176)), bricks) * light


def _water(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    short, long = _noise(rng, height, width, 2 * unit, 16 * unit), _noise(rng, height, width, 5 * unit, 48 * unit)
    ripples = 0.6 * short + 0.4 * long
    colors = _mix((10, 66, 96), (42, 146, 168), ripples)
    return colors + np.clip((ripples - 0.74) * 6, 0, 1) * (_plain((226, 244, 246)) - colors)


def _sand(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    fine, coarse = _noise(rng, height, width, 1, 1), _noise(rng, height, width, 10 * unit, 40 * unit)
    return _mix((190, 154, 98), (240, 214, 162), 0.35 * fine + 0.65 * coarse)


def _grass(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    blades, patches = _noise(rng, height, width, 7 * unit, unit), _noise(rng, height, width, 24 * unit, 32 * unit)
    return _mix((26, 74, 22), (140, 186, 66), 0.6 * blades + 0.4 * patches)


GROUNDS: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    "water": _water,
    "sand": _sand,
    "grass": _grass,
}


# --- things -----------------------------------------------------------------------------------------------------------


def _around(radii: Sequence[float]) -> np.ndarray:
    """Return corners (N, 2; x, y) at equal angles around the origin. The first one points up."""
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.array(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


OUTLINES = {  # approximately within the circle of radius 1
    "circle": _around([1.0] * 120),
    "triangle": _around([1.0] * 3),
    "rectangle": np.array([(-1, -0.62), (1, -0.62), (1, 0.62), (-1, 0.62)]),
    "star": _around([1.0, 0.42] * 5),
}


def _shape(rng: np.random.Generator, height: int, width: int, difficulty: float) -> Layer:
    name = [*OUTLINES][int(rng.integers(len(OUTLINES)))]
    radius = min(height, width) * (0.2 - 0.14 * rng.random() * (0.4 + 0.6 * difficulty))
    center = np.array([(0.05 + 0.9 * rng.random()) * width, (0.15 + 0.78 * rng.random()) * height])
    turn = 2 * math.pi * (rng.random() - 0.5) * (0.15 + 0.85 * difficulty)
    squeeze = 1 - 0.4 * difficulty * rng.random()
    cosine, sine = math.cos(turn), math.sin(turn)
    corners = OUTLINES[name] * (radius, radius * squeeze) @ np.array([[cosine, sine], [-sine, cosine]])
    margin = 5 * _unit(height, width)
    top, left, cover_hw = polygon_coverage(corners + center, margin)
    soft_hw = cv2.GaussianBlur(cover_hw, (2 * margin + 1, 2 * margin + 1), 0)
    return Layer(LABELS[name], top, left, cover_hw, _paint(rng, soft_hw, difficulty), soft_hw)


def polygon_coverage(corners: np.ndarray, margin: int) -> tuple[int, int, np.ndarray]:
    """Return top, left and coverage of a polygon (N, 2; x, y in pixels), with an empty margin around it."""
    corners = np.rint(corners * 64) / 64
    left, top = (int(edge) - margin for edge in np.floor(corners.min(axis=0)))
    right, bottom = (int(edge) + margin for edge in np.ceil(corners.max(axis=0)))
    fine = _fill((corners - (left, top)) * SAMPLES, (bottom - top) * SAMPLES, (right - left) * SAMPLES)
    return top, left, cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)


def _fill(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return FULL for samples whose centre lies inside a polygon (N, 2; x, y), else 0.

    cv2.fillPoly is not used, because its edges differ between versions of OpenCV.
    """
    x = np.arange(width)[:, None] + 0.5
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    columns, edges = np.nonzero((x0 <= x) != (x1 <= x))
    slopes = (y1 - y0)[edges] / (x1 - x0)[edges]
    rows = np.ceil(y0[edges] + (columns + 0.5 - x0[edges]) * slopes - 0.5).astype(np.int64)
    crossings = np.bincount(rows * width + columns, minlength=height * width).astype(np.uint8).reshape(height, width)
    return np.bitwise_xor.accumulate(crossings & 1, axis=0) * np.uint8(FULL)


def _paint(rng: np.random.Generator, soft_hw: np.ndarray, difficulty: float) -> np.ndarray:
    """Return a single colour, lit from the upper left and darker towards the edge."""
    height, width = soft_hw.shape
    saturation, value = 0.95 - 0.5 * difficulty * rng.random(), 0.95 - 0.35 * difficulty * rng.random()
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), saturation, value)
    inside = soft_hw.astype(np.float32) / FULL
    across = np.linspace(0, 1, width, dtype=np.float32) + np.linspace(0, 1, height, dtype=np.float32)[:, None]
    light = (0.5 + 0.55 * inside) * (1.18 - 0.2 * across)
    return np.clip(_plain((255 * red, 255 * green, 255 * blue)) * light + 12 * inside * (1 - across / 2), 0, 255)


def visible_layers(shapes: list[Layer], height: int, width: int) -> list[Layer]:
    """Return the shapes of which enough is visible, back to front.

    Visibility is decided from the front: the nearest shape hides the others.
    """
    hidden_HW = np.zeros((height, width), dtype=bool)
    kept = []
    for shape in reversed(shapes):
        there, here = shape.clipped(height, width)
        mask = shape.cover_hw >= FULL // 2
        shown = mask[here] & ~hidden_HW[there]
        if np.count_nonzero(shown) >= max(1, LEAST_VISIBLE * np.count_nonzero(mask)):
            hidden_HW[there] |= mask[here]
            kept.append(shape)
    return kept[::-1]

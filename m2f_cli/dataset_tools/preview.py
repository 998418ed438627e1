"""Previews of annotated images: small, with their annotations drawn over them, before and after augmentation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.records import DataSet, Record
from ..data.training_set import read
from ..data.transforms import Sample, Transform, augment
from ..data.transforms.geometry import Cutout, mask_of
from ..errors import DataError
from ..results.class_names import numbers_of
from ..results.colors import BLACK
from ..results.draw_options import DrawOptions
from ..results.drawing import plot
from ..results.types import PanopticMap, Segment, SemanticMap
from ..results.typesetting import look_for, set_text
from ..results.writers import write_image
from ..structures.annotations import (
    AnnotatedSegment,
    Annotation,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
    ignore_value,
)
from ..structures.categories import Categories
from ..structures.run_lengths import areas_in

EDGE = 320  # pixels, the longer edge of a small image
GAP, CAPTION, CAPTION_SIZE = 8, 20, 13


def as_result(annotation: Annotation, categories: Categories) -> PanopticMap | SemanticMap:
    """Return an annotation as a result to draw, without scores.

    If objects overlap, smaller ones lie on top of larger ones.
    """
    if isinstance(annotation, SemanticAnnotation):
        nothing = ignore_value(len(categories))
        labels_HW = np.where(annotation.labels_HW == annotation.ignore, nothing, annotation.labels_HW)
        return SemanticMap(annotation.size, categories, labels_HW.astype(np.min_scalar_type(nothing)))
    flat = _flat(annotation) if isinstance(annotation, InstanceAnnotation) else annotation
    area_of = areas_in(flat.ids_HW)
    segments = [Segment(s.id, s.label, None, area_of[s.id]) for s in flat.segments if area_of.get(s.id)]
    return PanopticMap(annotation.size, categories, flat.ids_HW, segments)


def _flat(annotation: InstanceAnnotation) -> PanopticAnnotation:
    cutouts = [(item.label, Cutout.of(mask_of(item, annotation.size))) for item in annotation.objects]
    cutouts.sort(key=lambda pair: -np.count_nonzero(pair[1].mask_hw))
    ids_HW = np.zeros(annotation.size, dtype=np.int32)
    for number, (_, cutout) in enumerate(cutouts, 1):
        height, width = cutout.mask_hw.shape
        ids_HW[cutout.top : cutout.top + height, cutout.left : cutout.left + width][cutout.mask_hw > 0] = number
    return PanopticAnnotation(ids_HW, [AnnotatedSegment(number, label) for number, (label, _) in enumerate(cutouts, 1)])


def drawn(
    image_HW3: np.ndarray,
    annotation: Annotation,
    categories: Categories,
    edge: int = EDGE,
    draw: DrawOptions | None = None,
) -> Image.Image:
    """Return an image, reduced to at most `edge` pixels, with its annotation drawn over it."""
    height, width = image_HW3.shape[:2]
    factor = min(1.0, edge / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    small = Image.fromarray(image_HW3).resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=2)
    return plot(_shrunk(as_result(annotation, categories), size), small, draw)


def _shrunk(result: PanopticMap | SemanticMap, size: tuple[int, int]) -> PanopticMap | SemanticMap:
    """Reduce a result to `size`. Each new pixel is the one in the middle of its area."""
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(size, result.size, strict=True))
    index = np.ix_(rows, columns)
    if isinstance(result, SemanticMap):
        return replace(result, size=size, labels_HW=result.labels_HW[index])
    return replace(result, size=size, ids_HW=result.ids_HW[index])


def plain(record: Record, edge: int = EDGE) -> Image.Image:
    """Return an image, reduced to at most `edge` pixels, without its annotation.

    Raises:
        DataError: the image cannot be read.
    """
    image = Image.fromarray(record.read_image())
    image.thumbnail((edge, edge))
    return image


# --- before and after augmentation ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """Small image with its annotation.

    Attributes:
        name: name of the image.
        before: the image without augmentation.
        after: the image as training sees it. None without an augmentation.
    """

    name: str
    before: Image.Image
    after: Image.Image | None = None

    @property
    def images(self) -> list[Image.Image]:
        return [self.before] if self.after is None else [self.before, self.after]


def views(
    data: DataSet,
    steps: Sequence[Transform] = (),
    *,
    count: int = 16,
    seed: int = 0,
    draw: DrawOptions | None = None,
    on_skip: Callable[[str], None] | None = None,
) -> Iterator[Preview]:
    """Yield previews of images that a seed chooses, in the order of the data set.

    Args:
        steps: the augmentation. Its randomness is that of a training with this seed whose stream begins with these
            images.
        count: number of images.
        draw: what is drawn, and how.
        on_skip: called with the reason if an image is left out. Another image replaces it.

    Raises:
        ConfigError: `draw` names a class that the data set does not have.
        DataError: none of the chosen images can be read.
    """
    if draw is not None:
        numbers_of(draw.classes, data.categories)
    order = np.random.default_rng(seed).permutation(len(data.records)).tolist()
    chosen = sorted(order[:count]) + order[count:]
    shown, reason = 0, ""
    for index in chosen:
        if shown == count:
            return
        try:
            yield _view(data, index, steps, np.random.default_rng((seed, shown, index)), draw)
            shown += 1
        except DataError as error:
            reason = str(error)
            if on_skip is not None:
                on_skip(reason)
    if not shown:
        raise DataError(f"No image of the {data.split} split can be shown. The last: {reason}")


def _view(
    data: DataSet, index: int, steps: Sequence[Transform], rng: np.random.Generator, draw: DrawOptions | None
) -> Preview:
    record = data.records[index]
    sample = read(record)
    before = drawn(sample.image_HW3, sample.annotation, data.categories, draw=draw)
    if not steps:
        return Preview(record.name, before)
    augmented: Sample = augment(sample, steps, rng)
    return Preview(record.name, before, drawn(augmented.image_HW3, augmented.annotation, data.categories, draw=draw))


def sheet(shown: Sequence[Preview], columns: int | None = None) -> Image.Image:
    """Return all previews in one image, each with its name above it. Before and after are side by side.

    Args:
        columns: previews in a row. By default the sheet is about as wide as high.
    """
    each = max(len(view.images) for view in shown)
    columns = columns or max(1, min(len(shown), round((len(shown) / each) ** 0.5)))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(image.height for view in row for image in view.images) + CAPTION + GAP for row in rows]
    width = each * (EDGE + GAP) + GAP
    page = Image.new("RGB", (columns * width, sum(heights) + GAP), "white")
    look_for(" ".join(view.name for view in shown))
    for row, top in zip(rows, itertools.accumulate(heights, initial=GAP), strict=False):
        for number, view in enumerate(row):
            left = number * width + GAP
            set_text(_shortened(view.name, width - 2 * GAP), CAPTION_SIZE).draw(page, left, top + CAPTION_SIZE, BLACK)
            for column, image in enumerate(view.images):
                page.paste(image, (left + column * (EDGE + GAP), top + CAPTION))
    return page


def write_sheet(shown: Sequence[Preview], path: Path) -> Path:
    """Write the sheet as a file of the kind that the path's suffix names.

    Raises:
        M2FError: the file cannot be written.
    """
    kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
    return write_image(path, sheet(shown), format=kind, quality=90)[0]


def _shortened(name: str, width: int) -> str:
    """Return the end of a name that fits the width, because the end tells images apart."""
    first = 0
    while set_text(name if not first else f"…{name[first:]}", CAPTION_SIZE).width > width:
        first += 1
    return name if not first else f"…{name[first:]}"

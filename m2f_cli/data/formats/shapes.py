"""Validated shapes of objects: polygons and run lengths from annotation files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.images import MAX_PIXELS
from ...structures.rle import encode_counts
from ...structures.schemas import shown, whole_number

REACH = 10  # largest distance of a polygon from its image, in longer edges
LEAST_REACH = 1000  # least such distance in pixels, for small images
MOST_LENGTH = 10_000_000  # pixels of one object's outline; drawing takes 40 bytes for each
_MOST_LETTERS = 7  # letters of a run length in COCO's text: 35 bits


def parse_shape(segmentation: Any, size: tuple[int, int], where: str) -> list[np.ndarray] | dict[str, Any]:
    """Return a COCO `segmentation` in the form of an annotated object.

    Args:
        segmentation: polygons as in `split_polygons`, or run lengths, compressed or not.
        size: (height, width) of the image.
        where: name of the annotation, for messages.

    Returns:
        Polygons, each (points, 2) float64, or a compressed run-length mask {"size": [H, W], "counts": bytes}. Polygons
            of fewer than three points cover nothing and are left out.

    Raises:
        DataError: the segmentation is neither of both, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _parse_rle(segmentation, size, where)
    polygons = [points_P2 for points_P2 in split_polygons(segmentation, where) if len(points_P2)]
    check_polygons(polygons, size, where)
    return [points_P2 for points_P2 in polygons if len(points_P2) >= 3]


def split_polygons(segmentation: Any, where: str) -> list[np.ndarray]:
    """Return all polygons of a `segmentation`, each (points, 2) float64, also those of fewer than three points.

    Args:
        segmentation: a list of [x, y, x, y, …] or of [[x, y], [x, y], …]. Neighbouring entries [x, y] are the points of
            one polygon.
        where: name of the annotation, for messages.

    Raises:
        DataError: the segmentation has another form.
    """
    if not segmentation or not isinstance(segmentation, list):
        raise DataError(
            f"{where} has no mask: its segmentation is {shown(segmentation)}.",
            hint="Boxes are not enough to segment: annotate polygons or masks.",
        )
    if not any(map(_is_point, segmentation)):
        return [_parse_polygon(points, where) for points in segmentation]
    polygons: list[np.ndarray] = []
    for is_point, parts in itertools.groupby(segmentation, key=_is_point):
        entries = list(parts)
        polygons += [_parse_polygon(points, where) for points in ([entries] if is_point else entries)]
    return polygons


def _is_point(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == 2 and not isinstance(part[0], (list, tuple))


def _parse_polygon(points: Any, where: str) -> np.ndarray:
    try:
        numbers = np.array(points, dtype=np.float64)
        if numbers.ndim != 1 and numbers.shape[1:] != (2,):
            raise ValueError("neither numbers nor points")
        return numbers.reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: a polygon should be a list of numbers x, y, x, y, …, not {shown(points)}."
        ) from error


def check_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int], where: str) -> None:
    """Refuse polygons that would take more memory than any outline needs.

    pycocotools counts in fifths of pixels, in 32 bits.

    Args:
        polygons: the polygons of one object, each (points, 2) with at least one point.
        size: (height, width) of the image.
        where: name of the annotation, for messages.

    Raises:
        DataError: coordinates are not finite or far outside of the image, or an outline is absurdly long.
    """
    reach, length = max(REACH * max(size), LEAST_REACH), 0.0
    for points_P2 in polygons:
        flat = points_P2.ravel()
        low, high = flat[flat.argmin()], flat[flat.argmax()]  # faster than min and max; NaN counts as both
        if not (low >= -reach and high <= reach):
            raise _far_away(points_P2, size, where, high if high > reach else low)
        if len(points_P2) * (high - low) > MOST_LENGTH:  # a shorter outline cannot exceed the limit
            length += np.abs(np.diff(points_P2, axis=0, append=points_P2[:1])).max(axis=1).sum()
    if length > MOST_LENGTH:
        raise DataError(
            f"{where}: an outline of {length:.3g} pixels is more than the {MOST_LENGTH:,} that are drawn.",
            hint="Simplify it, or write it as run lengths.",
        )


def _far_away(points_P2: np.ndarray, size: tuple[int, int], where: str, value: float) -> DataError:
    if not np.isfinite(points_P2).all():
        return DataError(f"{where}: a polygon has coordinates that are not finite.")
    return DataError(
        f"{where}: a polygon has the coordinate {value:g}, far outside of its image of {size[0]} x {size[1]} pixels "
        "(height x width).",
        hint="Correct the annotation, or export it again.",
    )


def check_canvas(size: tuple[int, int], where: str) -> None:
    """Refuse a size that no image has, before masks of that size are allocated.

    Raises:
        DataError: the size has more pixels than any image that is read.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{where} claims {size[0]} x {size[1]} pixels (height x width), more than the {MAX_PIXELS:,} that are read."
        )


def _parse_rle(rle: dict[str, Any], size: tuple[int, int], where: str) -> dict[str, Any]:
    if _size_of(rle) != list(size):
        raise DataError(f"{where}: the size of its mask is {shown(rle.get('size'))}, that of its image {list(size)}.")
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        packed = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
        lengths = unpack_lengths(packed)
    else:
        packed, lengths = None, _whole_numbers(counts, where)
    # The C code of pycocotools trusts its input: missing pixels would be uninitialised memory.
    pixels = size[0] * size[1]
    if lengths is None:
        raise DataError(f"{where}: its run lengths are no COCO text: {shown(counts)}.", hint="Export them again.")
    if (lengths < 0).any():
        raise DataError(
            f"{where} has the run length {lengths.min()}, which should not be negative.",
            hint="Export the annotation again.",
        )
    if (lengths > pixels).any() or lengths.sum() != pixels:
        raise DataError(
            f"{where}: its run lengths cover {sum(lengths.tolist())} pixels, its image has {pixels}.",
            hint="Export the annotation again.",
        )
    if packed is None or not lengths[1:].all():
        return encode_counts(_without_empty_runs(lengths), size)
    return {"size": list(size), "counts": packed}


def _without_empty_runs(lengths: np.ndarray) -> list[int]:
    """Join the neighbours of runs of no pixel, but for the first run: of such masks, pycocotools gives wrong boxes."""
    values, lengths = (np.arange(len(lengths)) % 2)[lengths > 0], lengths[lengths > 0]
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    joined = np.add.reduceat(lengths, starts).tolist()
    return [0, *joined] if values[0] else joined


def _size_of(rle: dict[str, Any]) -> list[int] | None:
    size = rle.get("size")
    try:
        return [whole_number(edge) for edge in size] if isinstance(size, (list, tuple)) else None
    except ValueError:
        return None


def _whole_numbers(counts: Any, where: str) -> np.ndarray:
    try:
        if not isinstance(counts, list):
            raise ValueError("no list")
        return np.array([value if type(value) is int else whole_number(value) for value in counts], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: `counts` should be text or a list of whole numbers, not {shown(counts)}.") from error


def unpack_lengths(packed: bytes) -> np.ndarray | None:
    """Return the run lengths in COCO's compressed text, or None for text that is not in this form.

    Each letter has five bits; the sixth says that the number continues. From the fourth number on, a number is the
    difference to the one before the last.
    """
    letters = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters & 32 == 0)
    if not len(letters):
        return np.zeros(0, dtype=np.int64)
    if letters.min() < 0 or letters.max() > 63 or not len(ends) or ends[-1] != len(letters) - 1:
        return None  # an invalid letter, or a number without an end, for which the C code would read on
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _MOST_LETTERS:
        return None
    shift = 5 * (np.arange(len(letters)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((letters & 31) << shift, starts)
    numbers -= np.where(letters[ends] & 16, np.int64(1) << (shift[ends] + 5), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers

"""Shapes of objects: polygons and run lengths as they come in annotation files, checked; id maps as run lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import DataError


def parse_shape(segmentation: Any, size: tuple[int, int], where: str) -> list[np.ndarray] | dict[str, Any]:
    """A COCO `segmentation` as a TrueObject keeps it.

    Args:
        segmentation: polygons [[x, y, x, y, …], …], or run lengths, compressed or not.
        size: (height, width) of the picture.
        where: which annotation this is, for messages.

    Returns:
        Polygons, each (points, 2) float64; those of fewer than three points cover nothing and are left out. Or a
        compressed run-length mask {"size": [H, W], "counts": bytes}.

    Raises:
        DataError: neither of both, or run lengths that do not fit the picture.
    """
    if isinstance(segmentation, dict):
        return _parse_rle(segmentation, size, where)
    if not segmentation or not isinstance(segmentation, list):
        raise DataError(
            f"{where} has no mask: its segmentation is {segmentation!r}.",
            hint="Boxes are not enough to segment: annotate polygons or masks.",
        )
    polygons = [_parse_polygon(points, where) for points in segmentation]
    return [points_P2 for points_P2 in polygons if len(points_P2) >= 3]


def _parse_polygon(points: Any, where: str) -> np.ndarray:
    try:
        points_P2 = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: a polygon should be a list of numbers x, y, x, y, …, not {str(points)[:60]}."
        ) from error
    if not np.isfinite(points_P2).all():
        raise DataError(f"{where}: a polygon has coordinates that are not finite.")
    return points_P2


def _parse_rle(rle: dict[str, Any], size: tuple[int, int], where: str) -> dict[str, Any]:
    if list(rle.get("size", ())) != list(size):
        raise DataError(f"{where}: the size of its mask is {rle.get('size')}, that of its picture {list(size)}.")
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        packed = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
        lengths = unpack_lengths(packed)
    else:
        packed, lengths = None, _whole_numbers(counts, where)
    # The C code of pycocotools trusts its input: what is missing stays uninitialised memory.
    if lengths.sum() != size[0] * size[1] or (lengths < 0).any():
        raise DataError(
            f"{where}: its run lengths cover {lengths.sum()} pixels, its picture has {size[0] * size[1]}.",
            hint="Export the annotation again.",
        )
    if packed is None:
        packed = coco_mask.frPyObjects({"size": list(size), "counts": lengths.tolist()}, *size)["counts"]
    return {"size": list(size), "counts": packed}


def _whole_numbers(counts: Any, where: str) -> np.ndarray:
    if not isinstance(counts, list) or not all(isinstance(value, int) for value in counts):
        raise DataError(f"{where}: `counts` should be text or a list of whole numbers, not {str(counts)[:60]}.")
    return np.array(counts, dtype=np.int64)


def unpack_lengths(packed: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed text, by its description in pycocotools: five bits a letter, the sixth says
    that the number goes on; from the fourth number on, the difference to the one before the last."""
    letters = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters & 32 == 0)
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    letters = letters[: ends[-1] + 1]
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = 5 * (np.arange(len(letters)) - np.repeat(starts, ends - starts + 1))
    numbers = np.add.reduceat((letters & 31) << np.minimum(place, 60), starts)
    numbers -= np.where(letters[ends] & 16, np.int64(1) << np.minimum(place[ends] + 5, 60), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode_ids(ids_HW: np.ndarray, ids: Iterable[int]) -> list[dict[str, Any]]:
    """The regions of an id map as compressed run-length masks, in the order of `ids`, in one pass over the pixels."""
    flat = ids_HW.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, owners = np.append(starts[1:], flat.size), flat[starts]
    height, width = ids_HW.shape
    rles = []
    for wanted in ids:
        own = owners == wanted
        edges = np.stack([starts[own], ends[own]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        counts = counts[:-1] if counts[-1] == 0 else counts
        rles.append(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))
    return rles

"""COCO run lengths of masks, polygons, objects and id maps: {"size": [height, width], "counts": bytes}."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

RLE: TypeAlias = dict[str, Any]
Size: TypeAlias = tuple[int, int]


def encode_mask(mask_HW: np.ndarray) -> RLE:
    """Return the run lengths of a mask, whose values are bool, or 0 and 1."""
    rle: RLE = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return rle


def encode_polygons(polygons: Sequence[np.ndarray], size: Size) -> RLE:
    """Return the union of polygons (points, 2), as pycocotools draws it. Those below three points are left out."""
    flat = [np.asarray(points_P2, dtype=np.float64).ravel().tolist() for points_P2 in polygons if len(points_P2) >= 3]
    if not flat:
        return encode_counts([size[0] * size[1]], size)
    union: RLE = coco_mask.merge(coco_mask.frPyObjects(flat, *size))
    return union


def encode_shape(shape: Sequence[np.ndarray] | RLE, size: Size) -> RLE:
    """Return the run lengths of an annotated object: polygons, or run lengths that need not be compressed."""
    if not isinstance(shape, dict):
        return encode_polygons(shape, size)
    return encode_counts(shape["counts"], shape["size"]) if isinstance(shape["counts"], list) else shape


def encode_ids(ids_HW: np.ndarray, ids: Iterable[int]) -> list[RLE]:
    """Return the run lengths of regions of an id map, in the order of `ids`, from one pass over the pixels."""
    flat = ids_HW.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, owners = np.append(starts[1:], flat.size), flat[starts]
    rles = []
    for wanted in ids:
        own = owners == wanted
        edges = np.stack([starts[own], ends[own]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        counts = counts[:-1] if counts[-1] == 0 else counts
        rles.append(encode_counts(counts.tolist(), ids_HW.shape))
    return rles


def encode_counts(counts: list[int], size: Size) -> RLE:
    """Return compressed run lengths of plain ones, which go down the columns and begin with zeros."""
    rle: RLE = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return rle


def runs_of(rle: RLE) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and the ends (int64, ascending, half open) of the runs of a mask's pixels.

    They are flat positions, counted down the columns. pycocotools unpacks whole masks, which takes far longer for
    objects that are small in their image.
    """
    edges = np.cumsum(_counts(rle["counts"]))
    starts, ends = edges[: 2 * (len(edges) // 2) : 2], edges[1::2]
    return starts[starts < ends], ends[starts < ends]


def _counts(packed: bytes | str) -> np.ndarray:
    """Return the run lengths (int64) that pycocotools packed.

    A number is a chain of digits of 5 bits, the lowest first, plus 48. Bit 5 says that another digit follows, bit 4 of
    the last digit is the sign. From the fourth number on, each is the difference to the one before the last.
    """
    digits = np.frombuffer(packed.encode() if isinstance(packed, str) else packed, dtype=np.uint8).astype(np.int64) - 48
    lasts = np.flatnonzero(digits & 0x20 == 0)
    firsts = np.append(0, lasts[:-1] + 1)[: len(lasts)]
    places = 5 * (np.arange(len(digits)) - np.repeat(firsts, lasts - firsts + 1))
    counts: np.ndarray = np.add.reduceat((digits & 0x1F) << places, firsts) if len(digits) else digits
    counts = counts - ((digits[lasts] & 0x10) >> 4 << (places[lasts] + 5))
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return counts


def as_text(rle: RLE) -> dict[str, Any]:
    """Return run lengths in the form of JSON: {"size": [height, width], "counts": text}."""
    counts = rle["counts"]
    return {
        "size": [int(edge) for edge in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }

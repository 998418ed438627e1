"""COCO run lengths of masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


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

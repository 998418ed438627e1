"""The annotated regions of one picture, counted and measured; nothing of its pixels is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...structures.annotations import InstanceTruth, PanopticTruth, SemanticTruth, Truth


@dataclass(frozen=True)
class Regions:
    """The annotated regions of a picture that are no crowds: class numbers and areas in pixels, in one order.

    crowds: how many more are crowds. hidden: regions, crowds among them, without a pixel. ignored: pixels without a
    class.
    """

    labels: tuple[int, ...]
    areas: tuple[int, ...]
    crowds: int = 0
    hidden: int = 0
    ignored: int = 0


def regions_of(truth: Truth) -> Regions:
    """Count and measure. Of a semantic truth, each class that is present is one region; masks that are run lengths are
    measured without unpacking them."""
    if isinstance(truth, SemanticTruth):
        areas = areas_in(truth.labels_HW)
        ignored = areas.pop(int(truth.ignore), 0)
        return Regions(tuple(areas), tuple(areas.values()), ignored=ignored)
    if isinstance(truth, PanopticTruth):
        areas = areas_in(truth.ids_HW)
        found = [(segment, areas.get(segment.id, 0)) for segment in truth.segments]
        ignored = areas.get(0, 0)
    else:
        found = [(item, _area(item.shape, truth)) for item in truth.objects]
        ignored = 0
    plain = [(region.label, area) for region, area in found if not region.iscrowd]
    hidden = sum(area == 0 for _, area in found)
    labels, areas = zip(*plain, strict=True) if plain else ((), ())
    return Regions(labels, areas, crowds=len(found) - len(plain), hidden=hidden, ignored=ignored)


def areas_in(plane_HW: np.ndarray) -> dict[int, int]:
    """The different values of a plane, ascending, and how many pixels have each."""
    flat = plane_HW.ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # runs are some hundred times fewer than pixels
    values, which = np.unique(flat[starts], return_inverse=True)
    areas = np.bincount(which.ravel(), weights=np.diff(np.append(starts, flat.size)))
    return {int(value): int(area) for value, area in zip(values, areas, strict=True)}


def _area(shape: list[np.ndarray] | dict[str, Any], truth: InstanceTruth) -> int:
    if isinstance(shape, dict):
        return int(coco_mask.area(shape))
    if not shape:
        return 0
    rles = coco_mask.frPyObjects([points_P2.ravel().tolist() for points_P2 in shape], *truth.size)
    return int(coco_mask.area(rles[0] if len(rles) == 1 else coco_mask.merge(rles)))

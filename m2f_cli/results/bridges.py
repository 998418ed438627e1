"""Results as others want them: COCO records, transformers' pipeline output, `supervision.Detections`; and `regions`,
one result as a stream of masks, for everything here that draws or cuts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import MissingDependency
from .regions import Region, _box, _parts
from .types import Instances, PanopticMap, Result, SemanticMap


def regions(result: Result) -> Iterator[Region]:
    """The regions of a result that have pixels, one at a time: segments in their order, classes by number, instances
    best first. Pixels of no segment or class belong to none."""
    if isinstance(result, Instances):
        yield from _instance_regions(result)
    elif isinstance(result, PanopticMap):
        for segment, window, mask_HW in _parts(result.ids_HW, [segment.id for segment in result.segments]):
            found = result.segments[segment]
            yield Region(found.id, found.label, found.score, _box(window), mask_HW)
    elif isinstance(result, SemanticMap):
        for label, window, mask_HW in _parts(result.labels_HW, range(len(result.categories))):
            yield Region(label, label, None, _box(window), mask_HW)
    else:
        raise TypeError(f"{type(result).__name__} is no result of this package")


def backwards(result: Result) -> Result:
    """The same result with instances worst first: what is painted last stays visible."""
    if not isinstance(result, Instances):
        return result
    return dataclasses.replace(
        result, labels_N=result.labels_N[::-1], scores_N=result.scores_N[::-1], rles=result.rles[::-1]
    )


def _instance_regions(result: Instances) -> Iterator[Region]:
    for i, rle in enumerate(result.rles):
        left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
        if width and height:
            box = (top, left, top + height, left + width)
            mask_HW = coco_mask.decode(rle)[top : top + height, left : left + width].astype(bool)
            yield Region(i, int(result.labels_N[i]), float(result.scores_N[i]), box, mask_HW)


# --- COCO -------------------------------------------------------------------------------------------------------------


def encode_rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """A mask as COCO run lengths that json can hold: {"size": [H, W], "counts": str}."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))


def panoptic_to_coco(result: PanopticMap) -> dict[str, Any]:
    """{"segments_info": [{"id", "category_id", "area", "bbox", "iscrowd", "score"}]}.

    Areas and boxes are counted from the map. Segments without pixels are left out: in the COCO panoptic format each
    id of the png is in the list and each of the list is in the png.
    """
    records = [
        {
            "id": region.id,
            "category_id": result.categories[region.label].id,
            "area": region.area,
            "bbox": region.coco_box,
            "iscrowd": 0,
            "score": region.score,
        }
        for region in regions(result)
    ]
    return {"segments_info": records}


def semantic_to_coco(result: SemanticMap) -> list[dict[str, Any]]:
    """COCO stuff results: one {"category_id", "segmentation", "area"} per class present."""
    return [
        {
            "category_id": result.categories[region.label].id,
            "segmentation": encode_rle(region.full_mask(result.size)),
            "area": region.area,
        }
        for region in regions(result)
    ]


def instances_to_coco(result: Instances) -> list[dict[str, Any]]:
    """COCO instance results: one {"category_id", "segmentation", "bbox", "score"} per object, best first."""
    return [
        {
            "category_id": result.categories[int(label)].id,
            "segmentation": _as_text(rle),
            "bbox": [float(value) for value in coco_mask.toBbox(rle)],
            "score": float(score),
        }
        for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True)
    ]


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {
        "size": [int(edge) for edge in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


# --- transformers -----------------------------------------------------------------------------------------------------


def _to_hf(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "score": region.score,
            "label": result.categories[region.label].name,
            "mask": Image.fromarray(region.full_mask(result.size).astype(np.uint8) * 255),
        }
        for region in regions(result)
    ]


def semantic_to_hf(result: SemanticMap) -> list[dict[str, Any]]:
    """[{"score": None, "label": name, "mask": "L" image of 0 and 255}], one per class present."""
    return _to_hf(result)


def panoptic_to_hf(result: PanopticMap) -> list[dict[str, Any]]:
    """[{"score", "label": name, "mask": "L" image of 0 and 255}], one per segment."""
    return _to_hf(result)


def instances_to_hf(result: Instances) -> list[dict[str, Any]]:
    """[{"score", "label": name, "mask": "L" image of 0 and 255}], one per object, best first."""
    return _to_hf(result)


# --- supervision ------------------------------------------------------------------------------------------------------


def _to_supervision(result: Result) -> Any:
    """`supervision.Detections` with masks, class numbers, scores (where there are any) and data["class_name"].

    Boxes are supervision's own, from the masks: (x1, y1, x2, y2) of the first and last pixel.

    Raises:
        MissingDependency: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingDependency("supervision", "to_supervision()", "supervision") from error
    found = list(regions(result))
    if not found:
        return supervision.Detections.empty()
    masks_NHW = np.stack([region.full_mask(result.size) for region in found])
    scores = [region.score for region in found]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks_NHW),
        mask=masks_NHW,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.array([region.label for region in found]),
        data={"class_name": np.array([result.categories[region.label].name for region in found])},
    )


def semantic_to_supervision(result: SemanticMap) -> Any:
    """`supervision.Detections`, one per class present; see `_to_supervision`."""
    return _to_supervision(result)


def panoptic_to_supervision(result: PanopticMap) -> Any:
    """`supervision.Detections`, one per segment; see `_to_supervision`."""
    return _to_supervision(result)


def instances_to_supervision(result: Instances) -> Any:
    """`supervision.Detections`, one per object with pixels, best first; see `_to_supervision`."""
    return _to_supervision(result)

"""Results as other tools take them: COCO records, transformers' pipeline output, `supervision.Detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import MissingDependency
from ..structures.rle import as_text, encode_mask

if TYPE_CHECKING:
    from .types import Instances, PanopticMap, Result, SemanticMap


# --- COCO -------------------------------------------------------------------------------------------------------------


def panoptic_to_coco(result: PanopticMap) -> dict[str, Any]:
    """Return the record of a panoptic map in the COCO panoptic format.

    Areas and boxes are counted from the map. Segments without pixels are left out: in the COCO panoptic format each id
    of the PNG is in the list, and each id of the list is in the PNG.

    Returns:
        {"segments_info": [{"id", "category_id", "area", "bbox", "iscrowd", "score"}]}.
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
        for region in result.regions()
    ]
    return {"segments_info": records}


def semantic_to_coco(result: SemanticMap) -> list[dict[str, Any]]:
    """Return COCO stuff results: one {"category_id", "segmentation", "area"} for each class that is present."""
    return [
        {
            "category_id": result.categories[region.label].id,
            "segmentation": as_text(encode_mask(region.full_mask(result.size))),
            "area": region.area,
        }
        for region in result.regions()
    ]


def instances_to_coco(result: Instances) -> list[dict[str, Any]]:
    """Return COCO instance results, best first: {"category_id", "segmentation", "bbox", "score"} for each object."""
    return [
        {
            "category_id": result.categories[int(label)].id,
            "segmentation": as_text(rle),
            "bbox": [float(value) for value in coco_mask.toBbox(rle)],
            "score": float(score),
        }
        for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True)
    ]


# --- transformers -----------------------------------------------------------------------------------------------------


def to_hf(result: Result) -> list[dict[str, Any]]:
    """Return [{"score", "label": name, "mask": "L" image of 0 and 255}], one for each region; a class has no score."""
    return [
        {
            "score": region.score,
            "label": result.categories[region.label].name,
            "mask": Image.fromarray(region.full_mask(result.size).astype(np.uint8) * 255),
        }
        for region in result.regions()
    ]


# --- supervision ------------------------------------------------------------------------------------------------------


def to_supervision(result: Result) -> Any:
    """Return `supervision.Detections` with masks, class numbers, scores (where there are any) and data["class_name"].

    Boxes are those of supervision, from the masks: (x1, y1, x2, y2) of the first and the last pixel.

    Raises:
        MissingDependency: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingDependency("supervision", "to_supervision()", "supervision") from error
    regions = list(result.regions())
    if not regions:
        return supervision.Detections.empty()
    masks_NHW = np.stack([region.full_mask(result.size) for region in regions])
    scores = [region.score for region in regions]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks_NHW),
        mask=masks_NHW,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.array([region.label for region in regions]),
        data={"class_name": np.array([result.categories[region.label].name for region in regions])},
    )

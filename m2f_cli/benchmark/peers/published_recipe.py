"""Post-processing in the published order (docs/methods/published-behaviour.md#5-1): every query at every size.

It is not for predictions. `postprocess` is compared with it, in results and in cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from ...config.schema import TestConfig
from ...inference.mask_rendering import Size
from ...results.types import Instances, PanopticMap, Result, Segment, SemanticMap
from ...structures import Task
from ...structures.categories import Categories


@dataclass
class Rendered:
    """Mask logits of an image at stride 4, and the sizes that they are resized to (see `MaskLogits`)."""

    logits_QHW: Tensor
    padded: Size
    valid: Size
    size: Size

    def at_input(self) -> Tensor:
        full = _resized(self.logits_QHW, self.padded)
        return full[:, : self.valid[0], : self.valid[1]]

    def at_output(self) -> Tensor:
        return _resized(self.at_input(), self.size)


RENDER = {"render": ((Rendered, "at_input"), (Rendered, "at_output"))}  # the stage that makes masks


def _resized(maps: Tensor, size: Size) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def finish(
    task: Task,
    class_logits_QK: Tensor,
    masks: Rendered,
    categories: Categories,
    test: TestConfig,
    score_threshold: float = 0.0,
) -> Result:
    """Return a result by the published rules. The arguments are those of `Segmenter.finish`."""
    if task == "panoptic":
        return panoptic(class_logits_QK, masks, categories, test)
    if task == "instance":
        return instances(class_logits_QK, masks, categories, test, score_threshold)
    return semantic(class_logits_QK, masks, categories, test)


def semantic(class_logits_QK: Tensor, masks: Rendered, categories: Categories, test: TestConfig) -> SemanticMap:
    """Return class maps by steps 3 and 4. A model for semantic alone resizes scores, every other one mask logits."""
    alone = test.tasks == ("semantic",)
    logits_QHW = masks.at_input() if alone else masks.at_output()
    probs_QK = class_logits_QK.softmax(-1)[:, :-1]
    maps_QHW = logits_QHW if test.semantic_scores == "logits" else logits_QHW.sigmoid()
    scores_KHW = torch.einsum("qk,qhw->khw", probs_QK, maps_QHW)
    if alone:
        scores_KHW = _resized(scores_KHW, masks.size)
    dtype = np.uint8 if len(categories) < 255 else np.uint16
    return SemanticMap(masks.size, categories, scores_KHW.argmax(0).cpu().numpy().astype(dtype))


def panoptic(class_logits_QK: Tensor, masks: Rendered, categories: Categories, test: TestConfig) -> PanopticMap:
    """Return segments by step 5 of the published post-processing (docs/methods/published-behaviour.md#5-1)."""
    logits_QHW = masks.at_output()
    scores_Q, labels_Q = class_logits_QK.softmax(-1).max(-1)
    kept = (labels_Q != class_logits_QK.shape[-1] - 1) & (scores_Q > test.object_threshold)
    scores, labels, probs_QHW = scores_Q[kept], labels_Q[kept], logits_QHW.sigmoid()[kept]
    ids_HW = torch.zeros(masks.size, dtype=torch.int32, device=logits_QHW.device)
    segments: list[Segment] = []
    stuff: dict[int, Segment] = {}
    if not len(scores):
        return PanopticMap(masks.size, categories, ids_HW.cpu().numpy(), segments)
    owner_HW = (scores[:, None, None] * probs_QHW).argmax(0)
    for k, label in enumerate(labels.tolist()):
        owned_HW, covered_HW = owner_HW == k, probs_QHW[k] >= 0.5
        shown_HW = owned_HW & covered_HW if test.only_sure_pixels else owned_HW
        owned, covered, shown = owned_HW.sum().item(), covered_HW.sum().item(), shown_HW.sum().item()
        if not (owned and covered and shown) or owned / covered < test.overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = Segment(len(segments) + 1, label, scores[k].item(), 0)
            segments.append(segment)
            if not categories[label].isthing:
                stuff[label] = segment
        segment.area += shown
        ids_HW[shown_HW] = segment.id
    return PanopticMap(masks.size, categories, ids_HW.cpu().numpy(), segments)


def instances(
    class_logits_QK: Tensor, masks: Rendered, categories: Categories, test: TestConfig, score_threshold: float = 0.0
) -> Instances:
    """Return objects by step 6, with masks as run lengths of pycocotools."""
    logits_QHW = masks.at_output()
    probs_QK = class_logits_QK.softmax(-1)[:, :-1]
    probs, indices = probs_QK.flatten().topk(min(test.top_k, probs_QK.numel()), sorted=True)
    labels, queries = indices % probs_QK.shape[1], indices // probs_QK.shape[1]
    if "panoptic" in test.tasks:
        is_thing = torch.tensor([category.isthing for category in categories], device=labels.device)[labels]
        probs, labels, queries = probs[is_thing], labels[is_thing], queries[is_thing]
    chosen_NHW = logits_QHW[queries]
    masks_NHW = (chosen_NHW > 0).float()
    inside = (chosen_NHW.sigmoid() * masks_NHW).sum((1, 2)) / (masks_NHW.sum((1, 2)) + 1e-6)
    scores = (probs * inside).cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= score_threshold]
    encoded = [coco_mask.encode(np.asfortranarray(mask_HW)) for mask_HW in masks_NHW.byte().cpu().numpy()]
    return Instances(masks.size, categories, labels.cpu().numpy()[order], scores[order], [encoded[i] for i in order])

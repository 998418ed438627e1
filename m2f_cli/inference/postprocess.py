"""Post-processing of class logits and masks by the three published rules (docs/methods/published-behaviour.md#5-1).

Queries are filtered before masks are rendered. Pixels stay on the device of the masks; decisions about lists of queries
are taken on the host. The host waits for a GPU a few times per image (classes, counts, the final map), never once per
segment or band of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..results.types import Instances, PanopticMap, Segment, SemanticMap
from ..structures.categories import Categories
from ..structures.rle import RLE
from .mask_rendering import Band, MaskLogits, Size, bands, resized

QUERIES_AT_ONCE = 8  # objects rendered together; more would only cost memory


# --- panoptic ---------------------------------------------------------------------------------------------------------


@dataclass
class Claims:
    """Pixels that each kept query claims of an image.

    Attributes:
        owner_HW: number of the kept query with the highest product of score and mask probability, int.
        sure_HW: True where the mask probability of that query is at least 0.5.
        owned: number of pixels that each kept query owns.
        covered: number of pixels where the mask probability of each kept query is at least 0.5.
        visible: number of pixels of each kept query that are both.
    """

    owner_HW: Tensor
    sure_HW: Tensor
    owned: list[int]
    covered: list[int]
    visible: list[int]


def panoptic(
    class_logits_QK: Tensor,
    masks: MaskLogits,
    categories: Categories,
    *,
    object_threshold: float,
    overlap_threshold: float,
    only_sure_pixels: bool = True,
) -> PanopticMap:
    """Return a panoptic map: each pixel belongs to at most one segment
    (docs/methods/published-behaviour.md#5-1, step 5).

    Queries whose best class is "no object", or has a probability of at most `object_threshold`, are dropped. Each pixel
    belongs to the query with the highest product of score and mask probability. In query order, a query becomes a
    segment of the pixels that it owns with a mask probability of at least 0.5. It is dropped if less than
    `overlap_threshold` of its mask is left. All stuff of one class is one segment.

    Args:
        class_logits_QK: class logits; the last class is "no object".
        masks: mask logits.
        categories: classes of the model.
        object_threshold: least class probability of a query.
        overlap_threshold: least share of a mask that its query must own.
        only_sure_pixels: False is MaskFormer's rule: a segment has all pixels of its query, of any mask probability.
    """
    scores_Q, labels_Q = (best.cpu() for best in class_logits_QK.float().softmax(-1).max(-1))
    no_object = class_logits_QK.shape[-1] - 1
    kept = ((labels_Q != no_object) & (scores_Q > object_threshold)).nonzero().flatten()
    claims = _claim(masks, kept.to(masks.device), scores_Q[kept].to(masks.device))
    shown = claims.visible if only_sure_pixels else claims.owned
    scores, labels = scores_Q[kept].tolist(), labels_Q[kept].tolist()
    segments: list[Segment] = []
    stuff: dict[int, Segment] = {}
    id_of_query = [0] * len(labels)
    for i, (score, label) in enumerate(zip(scores, labels, strict=True)):
        if not (claims.owned[i] and claims.covered[i] and shown[i]):
            continue
        if claims.owned[i] / claims.covered[i] < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = Segment(id=len(segments) + 1, label=label, score=score, area=0)
            segments.append(segment)
            if not categories[label].isthing:
                stuff[label] = segment
        segment.area += shown[i]
        id_of_query[i] = segment.id
    lookup = torch.tensor([*id_of_query, 0], dtype=torch.int32, device=masks.device)
    ids_HW = lookup[claims.owner_HW.long()]
    if only_sure_pixels:
        ids_HW = ids_HW * claims.sure_HW
    return PanopticMap(masks.size, categories, ids_HW.to(torch.int32).cpu().numpy(), segments)


def _claim(masks: MaskLogits, kept: Tensor, scores: Tensor) -> Claims:
    count, (height, width) = len(kept), masks.size
    owner_HW = torch.full(masks.size, count, dtype=torch.int16, device=masks.device)
    sure_HW = torch.zeros(masks.size, dtype=torch.bool, device=masks.device)
    covered = torch.zeros(count, dtype=torch.long, device=masks.device)
    if count:
        band = masks.at_output(kept)
        for start, stop in bands(height, width, count):
            probs = band(start, stop).sigmoid_()
            confident = probs >= 0.5
            covered += count_true(confident)
            owner = first_argmax(probs.mul_(scores[:, None, None]))
            owner_HW[start:stop] = owner
            sure_HW[start:stop] = confident.gather(0, owner[None])[0]
    kinds_HW = owner_HW.int().mul_(2).add_(sure_HW)
    unsure, visible = torch.bincount(kinds_HW.flatten(), minlength=2 * count + 2).view(-1, 2)[:count].T
    owned, covered, visible = torch.stack([unsure + visible, covered, visible]).tolist()
    return Claims(owner_HW, sure_HW, owned, covered, visible)


def count_true(mask_QHW: Tensor) -> Tensor:
    """Return the number of pixels (Q,) of each mask, int64. NumPy on a CPU: PyTorch would convert the booleans."""
    if mask_QHW.device.type == "cpu":
        return torch.tensor([np.count_nonzero(each) for each in mask_QHW.numpy()], dtype=torch.long)
    return mask_QHW.sum((1, 2))


def first_argmax(values_QHW: Tensor) -> Tensor:
    """Return the index (H, W) of the largest of Q values, the first of equal ones.

    On a CPU, planes are compared one after the other, because PyTorch's reduction over the first axis is slower.
    """
    if values_QHW.device.type != "cpu":
        return values_QHW.argmax(0)
    best, owner = values_QHW[0].clone(), torch.zeros(values_QHW.shape[1:], dtype=torch.int16)
    for number in range(1, len(values_QHW)):
        owner.masked_fill_(values_QHW[number] > best, number)
        torch.maximum(best, values_QHW[number], out=best)
    return owner.long()


# --- instances --------------------------------------------------------------------------------------------------------


def instances(
    class_logits_QK: Tensor,
    masks: MaskLogits,
    categories: Categories,
    *,
    top_k: int,
    only_things: bool,
    score_threshold: float = 0.0,
) -> Instances:
    """Return the best (query, class) pairs as objects; a query may have several classes
    (docs/methods/published-behaviour.md#5-1, step 6).

    The score is the class probability times the mean mask probability inside the mask (logit > 0).

    Args:
        class_logits_QK: class logits; the last class is "no object".
        masks: mask logits.
        categories: classes of the model.
        top_k: number of pairs, by class probability.
        only_things: drop stuff classes after the top k are chosen (models that also do panoptic segmentation).
        score_threshold: drop objects with a lower score. 0 gives the published result.
    """
    probs_QK = class_logits_QK.float().softmax(-1)[:, :-1]
    num_classes = probs_QK.shape[1]
    probs, pairs = (best.cpu() for best in probs_QK.flatten().topk(min(top_k, probs_QK.numel()), sorted=True))
    labels, queries = pairs % num_classes, pairs // num_classes
    keep = probs >= score_threshold  # the mean mask probability is at most 1 and cannot raise a score
    if only_things:
        things = torch.tensor([category.isthing for category in categories])
        keep &= things[labels]
    probs, labels, queries = probs[keep], labels[keep], queries[keep]
    distinct, index_of_query = queries.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    qualities, rles = _objects(masks, distinct.to(masks.device))
    scores = (probs * qualities.cpu()[index_of_query]).numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= score_threshold]
    index_of_query = index_of_query.tolist()
    return Instances(
        masks.size, categories, labels.numpy()[order], scores[order], [rles[index_of_query[i]] for i in order]
    )


def _objects(masks: MaskLogits, queries: Tensor) -> tuple[Tensor, list[RLE]]:
    """Return the mean mask probability inside each query's mask, (Q,), and the masks as run lengths."""
    qualities = [torch.zeros(0, device=masks.device)]
    rles: list[RLE] = []
    for inside_QWH, total in masks.objects(queries, QUERIES_AT_ONCE):
        qualities.append(total / (count_true(inside_QWH) + 1e-6))
        rles += coco_mask.encode(inside_QWH.cpu().numpy().view(np.uint8).transpose(2, 1, 0))
    return torch.cat(qualities), rles


# --- semantic ---------------------------------------------------------------------------------------------------------


def semantic_scores(
    class_logits_QK: Tensor, masks: MaskLogits, *, resize_scores: bool, of_logits: bool = False
) -> Band:
    """Return a function of class scores (K - 1, rows, W) at the image's size, for a band of rows
    (docs/methods/published-behaviour.md#5-1, steps 3 and 4).

    score[class] = Σ over queries of class probability · mask probability. "No object" is dropped, and nothing is
    renormalised.

    Args:
        class_logits_QK: class logits; the last class is "no object".
        masks: mask logits.
        resize_scores: compute scores at the network's input size and resize them, as models for semantic segmentation
            alone do. Others resize mask logits first.
        of_logits: sum mask logits instead of probabilities, for models whose queries are classes. Probabilities of
            large logits round to 1 and would tie.
    """
    probs_QK = class_logits_QK.float().softmax(-1)[:, :-1]
    queries = torch.arange(len(probs_QK), device=masks.device)
    logits = masks.at_input(queries) if resize_scores else masks.at_output(queries)

    def scores(start: int, stop: int) -> Tensor:
        masks_QHW = logits(start, stop)
        masks_QP = (masks_QHW if of_logits else masks_QHW.sigmoid_()).flatten(1)
        # The classes of a pixel are adjacent in memory, which makes the argmax over them fast.
        return (masks_QP.T @ probs_QK).view(*masks_QHW.shape[1:], probs_QK.shape[1]).permute(2, 0, 1)

    return resized(scores, masks.valid, masks.size) if resize_scores else scores


def semantic(
    class_logits_QK: Tensor, masks: MaskLogits, categories: Categories, *, resize_scores: bool, of_logits: bool = False
) -> SemanticMap:
    """Return the class of the highest score at each pixel. The options are those of `semantic_scores`."""
    scores = semantic_scores(class_logits_QK, masks, resize_scores=resize_scores, of_logits=of_logits)
    return best_classes(scores, masks.size, categories, maps=sum(class_logits_QK.shape), device=masks.device)


def best_classes(
    scores: Band, size: Size, categories: Categories, *, maps: int, device: torch.device | str
) -> SemanticMap:
    """Return the class of the highest score at each pixel.

    Args:
        scores: class scores at the image's size.
        size: size of the image.
        categories: classes of the model.
        maps: number of planes that a band of scores needs while it is computed.
        device: device of the map until it is complete.
    """
    dtype = torch.uint8 if len(categories) < 255 else torch.int32
    labels_HW = torch.empty(size, dtype=dtype, device=device)
    for start, stop in bands(*size, maps):
        labels_HW[start:stop] = scores(start, stop).argmax(0)
    labels = labels_HW.cpu().numpy()
    return SemanticMap(size, categories, labels if dtype is torch.uint8 else labels.astype(np.uint16))

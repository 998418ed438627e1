"""Merging of several views of an image, for panoptic and instance segmentation.

No rule is published; this one is m2f's own. Queries of different views that show the same thing are grouped. A group's
mask is the mean of its members' mask probabilities, and its class the mean of their class probabilities. The groups
then go through the published post-processing like the queries of one view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .base import RawOutput
from .mask_rendering import Band, MaskLogits, Size, bands

SAME_MASK = 0.5  # least IoU of two views of one thing
MATCHING_EDGE = 256  # the long edge at which masks are compared
CERTAIN = 1e-6  # mask probabilities closer to 0 or 1 than this have no finite logit in fp32


@dataclass
class Group:
    """Queries of different views, at most one of each view, that show the same thing.

    Attributes:
        members: (view, query) of each.
        probs_K: sum of their class probabilities.
        mask_S: sum of their masks at the size of comparison, flattened.
    """

    members: list[tuple[int, int]]
    probs_K: Tensor
    mask_S: Tensor


def merge_views(views: Sequence[tuple[RawOutput, bool]]) -> MergedOutput:
    """Merge the outputs of several views of one image into one output.

    Views are taken in order. Each query of the first view starts a group. Queries of a later view join the groups that
    they match best, one to one: mask IoU of at least 0.5, then the highest product of IoU and similarity of classes. A
    query without a match starts a group if it is an object. A thing that fewer than half of the views see loses score
    in proportion.

    Args:
        views: output of the network, and True for a mirrored image, of each view. Views may have different sizes.
    """
    groups: list[Group] = []
    for number, (raw, flipped) in enumerate(views):
        probs_QK, masks_QS = raw.class_logits_QK.float().softmax(-1), coarse_masks(raw.masks, flipped)
        matched = dict(_matches(groups, probs_QK, masks_QS))
        is_object = (probs_QK.argmax(1) < probs_QK.shape[1] - 1) & masks_QS.any(1)
        for query, is_new in enumerate(is_object.tolist()):
            if query in matched:
                group = groups[matched[query]]
                group.members.append((number, query))
                group.probs_K, group.mask_S = group.probs_K + probs_QK[query], group.mask_S + masks_QS[query]
            elif is_new or number == 0:
                groups.append(Group([(number, query)], probs_QK[query], masks_QS[query].float()))
    probs_GK = torch.stack([_mean_probs(group, len(views)) for group in groups])
    return MergedOutput(probs_GK.log(), MergedMasks([(raw.masks, flipped) for raw, flipped in views], groups))


def _mean_probs(group: Group, views: int) -> Tensor:
    voters = max(len(group.members), views / 2)
    probs_K = group.probs_K / voters
    probs_K[-1] += 1 - len(group.members) / voters
    return probs_K


def _matches(groups: list[Group], probs_QK: Tensor, masks_QS: Tensor) -> list[tuple[int, int]]:
    """Return the matches (query, group) of one view, one to one."""
    if not groups:
        return []
    counts_G = torch.tensor([len(group.members) for group in groups], device=masks_QS.device)
    group_masks = torch.stack([group.mask_S for group in groups]) >= counts_G[:, None] / 2
    group_probs = torch.stack([group.probs_K for group in groups]) / counts_G[:, None]
    likeness = probs_QK[:, :-1].sqrt() @ group_probs[:, :-1].sqrt().T
    ious = iou_matrix(masks_QS, group_masks)
    value = torch.where(ious >= SAME_MASK, ious * likeness, 0.0).cpu().numpy()
    pairs = zip(*linear_sum_assignment(value, maximize=True), strict=True)
    return [(int(query), int(group)) for query, group in pairs if value[query, group] > 0]


def iou_matrix(first_NS: Tensor, second_MS: Tensor) -> Tensor:
    """Return the intersection over union (N, M) of boolean masks; 0 where both are empty."""
    first, second = first_NS.float(), second_MS.float()
    intersection_NM = first @ second.T
    union_NM = first.sum(1)[:, None] + second.sum(1)[None] - intersection_NM
    return intersection_NM / union_NM.clamp(min=1)


def coarse_masks(masks: MaskLogits, flipped: bool) -> Tensor:
    """Return the masks (Q, S) of all queries at the size of comparison, bool, mirrored back."""
    height, width = masks.size
    scale = min(1.0, MATCHING_EDGE / max(height, width))
    small: Size = (max(1, round(height * scale)), max(1, round(width * scale)))
    queries = torch.arange(len(masks.embeds_QC), device=masks.device)
    band = replace(masks, size=small).at_output(queries)
    rows_below = -(-masks.valid[0] // small[0])  # of the network's input, for one row here
    parts = [band(*rows) > 0 for rows in bands(small[0], masks.valid[1], len(queries) * rows_below)]
    masks_QHW = torch.cat(parts, dim=1)
    return (masks_QHW.flip(-1) if flipped else masks_QHW).flatten(1)


@dataclass
class MergedMasks:
    """Masks of groups, with the methods of `MaskLogits` that post-processing calls.

    Attributes:
        views: mask logits, and True for a mirrored image, of each view.
        groups: the groups.
    """

    views: list[tuple[MaskLogits, bool]]
    groups: list[Group]

    @property
    def device(self) -> torch.device:
        return self.views[0][0].device

    @property
    def size(self) -> Size:
        return self.views[0][0].size

    def at_output(self, chosen: Tensor) -> Band:
        """Return the logits of the mean mask probability of the chosen groups, at the size of the image."""
        members = [self.groups[group].members for group in chosen.tolist()]
        counts = torch.tensor([len(each) for each in members], device=self.device)
        parts: list[tuple[Tensor, Band, bool]] = []
        for number, (masks, flipped) in enumerate(self.views):
            pairs = [(i, query) for i, each in enumerate(members) for view, query in each if view == number]
            if pairs:
                indices, queries = torch.tensor(pairs, device=self.device).unbind(1)
                parts.append((indices, masks.at_output(queries), flipped))

        def rows(start: int, stop: int) -> Tensor:
            total = torch.zeros(len(members), stop - start, self.size[1], device=self.device)
            for indices, band, flipped in parts:
                probs = band(start, stop).sigmoid()
                total.index_add_(0, indices, probs.flip(-1) if flipped else probs)
            return (total / counts[:, None, None]).clamp_(CERTAIN, 1 - CERTAIN).logit()

        return rows

    def objects(self, chosen: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the masks of `at_once` groups at a time, as `MaskLogits.objects` does."""
        height, width = self.size
        for chunk in torch.split(chosen, at_once) if len(chosen) else ():
            band, total = self.at_output(chunk), torch.zeros(len(chunk), device=self.device)
            inside_QWH = torch.empty(len(chunk), width, height, dtype=torch.bool, device=self.device)
            for start, stop in bands(height, width, len(chunk)):
                logits = band(start, stop)
                inside = logits > 0
                total += (logits.sigmoid() * inside).sum((1, 2))
                inside_QWH[..., start:stop] = inside.transpose(1, 2)
            yield inside_QWH, total


@dataclass
class MergedOutput:
    """Merged output of several views, in the form of a `RawOutput`.

    Attributes:
        class_logits_QK: logarithms of the class probabilities of the groups.
        masks: masks of the groups.
    """

    class_logits_QK: Tensor
    masks: MergedMasks

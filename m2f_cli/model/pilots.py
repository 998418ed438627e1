"""Mask-piloted training (MP-Former, section 3; docs/methods/published-behaviour.md#6).

Pilots are extra queries with known targets. A pilot query starts from the embedding of the class of its target. It
attends where the target is, not where its own last mask was. Pilots exist in training only: the decoder puts them
before its ordinary queries, which never see them, and `Pilots.split` separates their answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig, PilotingConfig
from ..errors import ConfigError
from ..ops.point_sampling import Rand, uniform
from ..structures.predictions import LayerOutput, Prediction
from ..structures.targets import Target
from .attention_masks import open_empty_rows

Size = tuple[int, int]
_MASKS_AT_ONCE = 8  # that are floating-point at the same time


@dataclass(frozen=True)
class Piloting:
    """Maker of the pilots of a batch.

    Attributes:
        config: how a network is piloted.
        num_classes: without "no object".
        rand: the source of noise. Label noise takes two draws of (B, T). Mask noise then takes one draw per layer of
            (B, T, S), or of (B, A, T, S) with noise per head.
    """

    config: PilotingConfig
    num_classes: int
    rand: Rand = uniform

    def __call__(self, targets: Sequence[Target], padded_size: Size) -> Pilots:
        """
        Args:
            targets: one per image, on the device of the network; each may be empty.
            padded_size: (height, width) of the padded batch in pixels.
        """
        fullest = max(map(len, targets))
        groups = self.number_of_groups(fullest)
        labels_BN = torch.full((len(targets), fullest), -1, device=targets[0].labels_N.device)
        for row, target in zip(labels_BN, targets, strict=True):
            row[: len(target)] = target.labels_N
        labels_BT = self._noised(labels_BN.repeat(1, groups))
        return Pilots(labels_BT, list(targets), padded_size, groups, self.config, self.rand)

    def number_of_groups(self, fullest: int) -> int:
        if not fullest:
            return 0
        return self.config.groups if self.config.groups is not None else self.config.budget // fullest

    def _noised(self, labels_BT: Tensor) -> Tensor:
        if not self.config.label_noise:
            return labels_BT
        chosen_BT = self.rand(labels_BT.shape, labels_BT.device) < self.config.label_noise
        others_BT = (self.rand(labels_BT.shape, labels_BT.device) * self.num_classes).long()
        return torch.where(chosen_BT & (labels_BT >= 0), others_BT.clamp(max=self.num_classes - 1), labels_BT)


def piloting_of(config: ModelConfig, num_classes: int) -> Piloting | None:
    """Return how a network of this configuration is piloted in training; None where it is not.

    Raises:
        ConfigError: an MP-Former whose configuration does not say how.
    """
    if config.piloting is not None:
        return Piloting(config.piloting, num_classes)
    if config.method == "mpformer" or config.decoder.options.get("piloted"):
        raise ConfigError(
            "This MP-Former has no model.piloting, which says how it is piloted in training.",
            hint="As published: --set model.piloting.groups=1; without pilots, use a Mask2Former preset.",
        )
    return None


@dataclass
class Pilots:
    """The pilot queries of one batch.

    There are `groups` groups. Each has as many slots as the image with the most targets needs.

    Attributes:
        labels_BT: the class that each slot starts from, noise included; -1 where the image has no such target.
        targets: one per image.
        padded_size: (height, width) of the padded batch in pixels.
        groups: the number of slots of each target.
        config: how the network is piloted.
        rand: the source of mask noise.
    """

    labels_BT: Tensor
    targets: list[Target]
    padded_size: Size
    groups: int
    config: PilotingConfig
    rand: Rand = uniform
    _cells: dict[Size, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return T, the number of slots of one image."""
        return self.labels_BT.shape[1]

    def content(self, label_embed: nn.Embedding) -> Tensor:
        """Return what the slots start from, (B, T, C); zeros in unused ones.

        The embeddings take part even when there is no slot, so every process has their gradient.
        """
        return label_embed(self.labels_BT.clamp(min=0)) * (self.labels_BT >= 0)[..., None]

    def visibility(self, queries: int) -> Tensor:
        """Return which query sees which in self-attention, (1, T + Q, T + Q); True = may see.

        Ordinary queries see each other; a pilot sees its own group and all ordinary queries
        (docs/methods/published-behaviour.md#6-4).
        """
        device = self.labels_BT.device
        slots = len(self) // self.groups if self.groups else 0
        pilots_T = torch.arange(self.groups, device=device).repeat_interleave(slots)
        group = torch.cat([pilots_T, pilots_T.new_full((queries,), self.groups)])
        return ((group[:, None] == group) | (group == self.groups))[None]

    def guide(self, may_attend_BQS: Tensor, layer: int, size: Size, heads: int) -> Tensor:
        """Let the pilots attend where their targets are: replace the first T rows if this layer is piloted.

        Args:
            may_attend_BQS: of all queries, True = may attend.
            layer: from 0 on.
            size: (height, width) of the feature map that the layer attends to.

        Returns:
            (B, T + Q, S), or (B, heads, T + Q, S) where each head has noise of its own.
        """
        if not len(self) or (self.config.layers != "all" and layer >= self.config.layers):
            return may_attend_BQS
        piloted = open_empty_rows(self.noised_masks(size, heads))
        ordinary = may_attend_BQS[:, len(self) :]
        if piloted.dim() == 4:
            ordinary = ordinary[:, None].expand(-1, heads, -1, -1)
        return torch.cat([piloted, ordinary], dim=-2)

    def noised_masks(self, size: Size, heads: int) -> Tensor:
        """Return the cells that the target of each slot touches, some of them flipped; all False in unused slots.

        A cell flips with probability mask_noise · (share of the grid that is touched). Each call draws new noise.

        Returns:
            (B, T, S), or (B, heads, T, S) with noise per head.
        """
        cells_BTS = self.target_cells(size)
        if not self.config.mask_noise:
            return cells_BTS
        S = cells_BTS.shape[-1]
        chance_BT1 = cells_BTS.sum(-1, keepdim=True) * self.config.mask_noise / S
        if self.config.noise_per_head:
            cells_BTS, chance_BT1 = cells_BTS[:, None].expand(-1, heads, -1, -1), chance_BT1[:, None]
        return cells_BTS ^ (self.rand(tuple(cells_BTS.shape), cells_BTS.device) < chance_BT1)

    def target_cells(self, size: Size) -> Tensor:
        if size not in self._cells:
            slots = len(self) // self.groups
            cells_BNS = self.labels_BT.new_zeros(len(self.targets), slots, size[0] * size[1], dtype=torch.bool)
            for row_NS, target in zip(cells_BNS, self.targets, strict=True):
                row_NS[: len(target)] = touched_cells(target, self.padded_size, size).flatten(1)
            self._cells[size] = cells_BNS.repeat(1, self.groups, 1)
        return self._cells[size]

    def split(self, prediction: Prediction) -> tuple[Prediction, Prediction]:
        """Return the answers of the ordinary queries and those of the pilots, over the same mask features."""
        first, rest = slice(None, len(self)), slice(len(self), None)
        return tuple(
            Prediction(
                prediction.mask_features_BCHW,
                [
                    LayerOutput(x.class_logits_BQK[:, part], x.mask_embeds_BQC[:, part], x.mask_features_BCHW)
                    for x in prediction.layers
                ],
            )
            for part in (rest, first)
        )

    def pairs(self, num_layers: int) -> list[tuple[Tensor, Tensor]]:
        """Return which slot answers for which target, per image: both (L, groups · N), the same in every layer."""
        device = self.labels_BT.device
        slots = len(self) // self.groups if self.groups else 0
        starts = torch.arange(self.groups, device=device)[:, None] * slots
        numbers = [torch.arange(len(target), device=device) for target in self.targets]
        return [
            ((starts + n).flatten().expand(num_layers, -1), n.repeat(self.groups).expand(num_layers, -1))
            for n in numbers
        ]


# --- where a target is, in cells --------------------------------------------------------------------------------------


def touched_cells(target: Target, padded_size: Size, size: Size) -> Tensor:
    """Return the cells of a grid over the padded image that hold any pixel of each target: (N, h, w), bool.

    That is area averaging and "more than nothing" (docs/methods/published-behaviour.md#6-3), so thin objects stay at
    stride 32. Cells are those of adaptive pooling: if the grid does not divide the image, neighbours share a row or
    column of pixels.

    Args:
        target: masks or an id map; both give the same cells.
        padded_size: (height, width) of the padded batch in pixels, at least as large as the target and the grid.
        size: (height, width) of the grid.
    """
    if target.masks_NHW is not None:
        return _pooled(target.masks_NHW, padded_size, size)
    return _scattered(target.owner_HW, len(target), padded_size, size)


def _pooled(masks_NHW: Tensor, padded_size: Size, size: Size) -> Tensor:
    padding = (0, padded_size[1] - masks_NHW.shape[2], 0, padded_size[0] - masks_NHW.shape[1])
    parts = [
        F.adaptive_max_pool2d(F.pad((chunk_NHW != 0).float(), padding)[:, None], size) > 0
        for chunk_NHW in masks_NHW.split(_MASKS_AT_ONCE)
    ]
    return torch.cat(parts)[:, 0]


def _scattered(owner_HW: Tensor, count: int, padded_size: Size, size: Size) -> Tensor:
    """Mark the cells of each pixel in the plane of its owner. The map is read once per overlap, not per target."""
    H, W = owner_HW.shape
    # One more plane takes pixels without an owner.
    plane_HW = torch.where(owner_HW < 0, count, owner_HW.long()) * (size[0] * size[1])
    touched = torch.zeros((count + 1) * size[0] * size[1], dtype=torch.bool, device=owner_HW.device)
    for row_H in _cells_of(H, padded_size[0], size[0], owner_HW.device):
        for column_W in _cells_of(W, padded_size[1], size[1], owner_HW.device):
            cells_HW = plane_HW + row_H[:, None] * size[1] + column_W
            touched.index_fill_(0, cells_HW.flatten(), True)
    return touched.view(count + 1, *size)[:count]


def _cells_of(pixels: int, length: int, cells: int, device: torch.device) -> list[Tensor]:
    """Return the cells of each of the first `pixels` of `length` pixels: one each if `cells` divides, else two."""
    pixel = torch.arange(pixels, device=device)
    first, last = pixel * cells // length, ((pixel + 1) * cells - 1) // length
    return [first] if length % cells == 0 else [first, last]

"""The loss of mask classification: classes of all queries, masks of the matched ones, in every layer
(docs/methods/published-behaviour.md#4-2, #4-3).

Mask2Former compares masks at points, MaskFormer at all pixels: see `mask_sampling`. Only matched queries are rendered,
at stride 4, those of all layers over one map in one matrix product per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config.schema import LossConfig
from ..errors import ConfigError
from ..ops.point_sampling import Rand, uniform
from ..runtime import distributed
from ..structures.predictions import Prediction
from ..structures.targets import Target
from .mask_losses import bce, dice, focal
from .mask_sampling import make_mask_sampling
from .matcher import Matcher, Pairs
from .per_pixel import PerPixelCriterion

MASK_LOSSES = {"bce": bce, "focal": focal}


def make_criterion(
    num_classes: int, config: LossConfig, class_weights: Sequence[float] = (), rand: Rand = uniform
) -> Criterion | PerPixelCriterion:
    """Make the criterion that a configuration asks for.

    Args:
        num_classes: without "no object".
        class_weights: of the class loss, one per class; () is all 1.

    Raises:
        ConfigError: the number of class weights is not that of the classes.
    """
    if class_weights and len(class_weights) != num_classes:
        raise ConfigError(
            f"train.class_weights has {len(class_weights)} numbers for {num_classes} classes.",
            hint="Give one per class, in the order of the data set's classes, or none.",
        )
    if config.masks == "per_pixel":
        return PerPixelCriterion(num_classes, config.class_weight, class_weights)
    return Criterion(num_classes, config, class_weights, rand)


def normaliser(targets: Sequence[Target], parts: int = 1) -> Tensor:
    """Return the mean number of targets per process, at least 1, by which sums of mask losses are divided.

    The result is a tensor without dimensions on the device of the targets, so the host does not wait for it.

    Args:
        targets: all that this process sees in one optimiser step.
        parts: the number of forward passes of that step, whose gradients are averaged.
    """
    # Filled on the device: a copy from the host would make it wait for the GPU.
    count = torch.full((), float(sum(map(len, targets))), device=targets[0].labels_N.device)
    return (distributed.sum_over_processes(count) / (parts * distributed.world_size())).clamp(min=1)


@dataclass
class Piloted:
    """Predictions of MP-Former's pilot queries, which need no matching (docs/methods/published-behaviour.md#6-5).

    Attributes:
        prediction: of the pilot queries alone.
        pairs: of each image.
        groups: the number of pilots of each target.
    """

    prediction: Prediction
    pairs: list[Pairs]
    groups: int


class Criterion(nn.Module):
    """Loss of a prediction.

    After each call, `stats` holds numbers for the log: "matched" pairs of one layer, "unmatched_targets" (more targets
    than queries) and "non_finite_costs" of all layers.

    Args:
        num_classes: without "no object".
        class_weights: of the class loss, one per class; () is all 1. "No object" has `config.no_object_weight`.
        rand: the source of random points.
    """

    def __init__(self, num_classes: int, config: LossConfig, class_weights: Sequence[float] = (), rand: Rand = uniform):
        super().__init__()
        weights_K = torch.tensor([*(class_weights or [1.0] * num_classes), config.no_object_weight])
        self.register_buffer("class_weights_K", weights_K, persistent=False)
        self.loss_weights = {"ce": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
        self.sampling = make_mask_sampling(config, rand)
        self.mask_loss = MASK_LOSSES[config.mask_loss]
        self.matcher = Matcher(
            config.class_weight, config.mask_weight, config.dice_weight, self.sampling, config.mask_loss
        )
        self.stats: dict[str, int] = {}

    def forward(
        self,
        prediction: Prediction,
        targets: list[Target],
        padded_size: tuple[int, int],
        num_masks: Tensor | float | None = None,
        pilots: Piloted | None = None,
    ) -> dict[str, Tensor]:
        """Return all losses, weighted; their sum is the total. Computed in fp32, also under autocast.

        Args:
            targets: one per image, on the device of the prediction; each may be empty.
            padded_size: (height, width) of the padded batch in pixels.
            num_masks: see `normaliser`, which is called if this is None.

        Returns:
            "loss_ce", "loss_mask", "loss_dice" of the last layer, and with "_0", "_1", … of the earlier ones, first to
            last. With pilots also "loss_ce_dn", …, "loss_ce_dn_0", ….
        """
        if num_masks is None:
            num_masks = normaliser(targets)
        matching = self.matcher(prediction, targets, padded_size)
        matched = sum(pairs.queries_LM.shape[1] for pairs in matching.pairs)
        self.stats = {
            "matched": matched,
            "unmatched_targets": sum(map(len, targets)) - matched,
            "non_finite_costs": matching.non_finite,
        }
        losses = self.losses_for(prediction, matching.pairs, targets, padded_size, num_masks)
        if pilots is not None:
            num_pilots = num_masks * pilots.groups
            losses |= self.losses_for(pilots.prediction, pilots.pairs, targets, padded_size, num_pilots, suffix="_dn")
        return losses

    def losses_for(
        self,
        prediction: Prediction,
        pairs: list[Pairs],
        targets: list[Target],
        padded_size: tuple[int, int],
        num_masks: Tensor | float,
        suffix: str = "",
    ) -> dict[str, Tensor]:
        """Return the weighted losses for given pairs, one `Pairs` per image."""
        with torch.autocast(prediction.mask_features_BCHW.device.type, enabled=False):
            class_loss_L = self._class_loss(prediction, pairs, targets)
            mask_loss_L, dice_loss_L = self._mask_losses(prediction, pairs, targets, padded_size)
            per_kind = {"ce": class_loss_L, "mask": mask_loss_L / num_masks, "dice": dice_loss_L / num_masks}
        numbers = [*(f"_{i}" for i in range(len(prediction.layers) - 1)), ""]
        return {
            f"loss_{kind}{suffix}{number}": self.loss_weights[kind] * loss
            for kind, loss_L in per_kind.items()
            for number, loss in zip(numbers, loss_L.unbind(), strict=True)
        }

    def _class_loss(self, prediction: Prediction, pairs: list[Pairs], targets: list[Target]) -> Tensor:
        """Return the weighted mean over all queries of the batch, (L,); unmatched ones are "no object"."""
        logits_LBQK = torch.stack([layer.class_logits_BQK for layer in prediction.layers]).float()
        L, B, Q, K = logits_LBQK.shape
        classes_LBQ = torch.full((L, B, Q), K - 1, device=logits_LBQK.device)
        for b, (pair, target) in enumerate(zip(pairs, targets, strict=True)):
            classes_LBQ[:, b].scatter_(1, pair.queries_LM, target.labels_N[pair.targets_LM])
        weights_LN = self.class_weights_K[classes_LBQ].view(L, B * Q)
        losses = F.cross_entropy(logits_LBQK.view(-1, K), classes_LBQ.view(-1), reduction="none")
        return (losses.view(L, B * Q) * weights_LN).sum(1) / weights_LN.sum(1)

    def _mask_losses(
        self, prediction: Prediction, pairs: list[Pairs], targets: list[Target], padded_size: tuple[int, int]
    ) -> Tensor:
        """Return mask and dice loss, summed over the pairs of the batch: (2, L).

        Images without targets take part with zero pairs, so every parameter has a gradient on every process.
        """
        parts = prediction.by_features()
        if len(parts) > 1:
            per_layer = [[Pairs(q_LM[[i]], t_LM[[i]]) for q_LM, t_LM in pairs] for i in range(len(parts))]
            each = zip(parts, per_layer, strict=True)
            return torch.cat([self._mask_losses(part, few, targets, padded_size) for part, few in each], dim=1)
        [prediction] = parts
        embeds_LBQC = torch.stack([layer.mask_embeds_BQC for layer in prediction.layers]).float()
        features = prediction.mask_features_BCHW.float().unbind(0)  # one gradient of the whole map, not one per image
        numbers = [pair.queries_LM.numel() * features[0][0].numel() for pair in pairs]
        losses = [
            self._portion_losses(features[part], embeds_LBQC[:, part], pairs[part], targets[part], padded_size)
            for part in self.sampling.portions(numbers)
        ]
        return sum(losses)

    def _portion_losses(
        self,
        features: Sequence[Tensor],
        embeds_LBQC: Tensor,
        pairs: Sequence[Pairs],
        targets: Sequence[Target],
        padded_size: tuple[int, int],
    ) -> Tensor:
        """Return mask and dice loss of a few images, summed over their pairs: (2, L)."""
        L, _, _, C = embeds_LBQC.shape
        images = zip(features, embeds_LBQC.unbind(1), pairs, strict=True)
        logits = [
            embeds_LQC.gather(1, pair.queries_LM[..., None].expand(-1, -1, C)).view(-1, C) @ features_CHW.flatten(1)
            for features_CHW, embeds_LQC, pair in images
        ]
        logits_RHW = (torch.cat(logits) if len(logits) > 1 else logits[0]).unflatten(1, features[0].shape[1:])
        numbers = [pair.targets_LM.reshape(-1) for pair in pairs]
        if self.sampling.chunk is None:
            losses_2R = self._pair_losses(logits_RHW, targets, numbers, padded_size)
        else:
            chunks = zip(logits_RHW.split(self.sampling.chunk), numbers[0].split(self.sampling.chunk), strict=True)
            losses_2R = torch.cat(
                [
                    checkpoint(self._pair_losses, few_RHW, targets, [few_R], padded_size, use_reentrant=False)
                    for few_RHW, few_R in chunks
                ],
                dim=1,
            )
        per_image = losses_2R.split([len(numbers_R) for numbers_R in numbers], dim=1)
        return sum(few_2R.view(2, L, few_2R.shape[1] // L).sum(2) for few_2R in per_image)

    def _pair_losses(
        self, logits_RHW: Tensor, targets: Sequence[Target], numbers: Sequence[Tensor], padded_size: tuple[int, int]
    ) -> Tensor:
        """Return mask and dice loss of each pair: (2, R)."""
        logits_RP, target_RP = self.sampling.of_pairs(logits_RHW, targets, numbers, padded_size)
        return torch.stack([self.mask_loss(logits_RP, target_RP), dice(logits_RP, target_RP)])

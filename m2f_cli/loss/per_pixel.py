"""The loss of the per-pixel baselines: cross entropy of the class of every pixel
(docs/methods/published-behaviour.md#2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..structures.predictions import Prediction
from ..structures.targets import Target


class PerPixelCriterion(nn.Module):
    """Loss of class maps, called as `Criterion`.

    Query i of the prediction stands for class i, and its mask logits are the class's logits.

    Args:
        class_weight: of the loss.
        class_weights: one per class; () is all 1.
    """

    def __init__(self, num_classes: int, class_weight: float, class_weights: Sequence[float] = ()):
        super().__init__()
        weights_Q = torch.tensor([*(class_weights or [1.0] * num_classes)])
        self.register_buffer("class_weights_Q", weights_Q, persistent=False)
        self.class_weight = class_weight
        self.stats: dict[str, int] = {}

    def forward(
        self,
        prediction: Prediction,
        targets: list[Target],
        padded_size: tuple[int, int],
        num_masks: Tensor | float | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted mean over all pixels that belong to a target, of every layer; 0 if there are none.

        Computed in fp32, also under autocast.

        Args:
            padded_size: (height, width) of the padded batch, to which logits are resized (bilinear).
            num_masks: not used; here to be called as `Criterion`.

        Raises:
            ConfigError: the queries of the prediction do not stand for classes.

        Returns:
            "loss_ce" of the last layer; "loss_ce_0", "loss_ce_1", … of the earlier ones.
        """
        num_queries = prediction.last.mask_embeds_BQC.shape[1]
        if num_queries != len(self.class_weights_Q):
            raise ConfigError(
                f"train.loss.masks is per_pixel, which needs one query per class, but {num_queries} queries answer for "
                f"{len(self.class_weights_Q)} classes.",
                hint="Choose the decoder per_pixel or per_pixel_plus, or the losses of points or full masks.",
            )
        labels_BHW = torch.stack([class_map(target, padded_size) for target in targets])
        share_BHW = torch.where(labels_BHW >= 0, self.class_weights_Q[labels_BHW.clamp(min=0)], 0)
        total = share_BHW.sum()
        share_BHW = share_BHW / torch.where(total > 0, total, 1)
        numbers = [*(f"_{i}" for i in range(len(prediction.layers) - 1)), ""]
        with torch.autocast(labels_BHW.device.type, enabled=False):
            return {
                # Logits of all classes at full size are large: one layer at a time, and made again for the gradient.
                f"loss_ce{number}": checkpoint(
                    self._layer_loss, prediction, i, labels_BHW, share_BHW, use_reentrant=False
                )
                for i, number in enumerate(numbers)
            }

    def _layer_loss(self, prediction: Prediction, layer: int, labels_BHW: Tensor, share_BHW: Tensor) -> Tensor:
        logits_BQHW = prediction.render(tuple(labels_BHW.shape[-2:]), layer=layer).float()
        losses_BHW = F.cross_entropy(logits_BQHW, labels_BHW, reduction="none", ignore_index=-1)
        return self.class_weight * (losses_BHW * share_BHW).sum()


def class_map(target: Target, padded_size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel of the padded image, -1 where no target is: (H, W) int64.

    Where masks overlap, the first one counts.
    """
    labels_N, (height, width) = target.labels_N, target.size
    if target.owner_HW is not None:
        owner_HW = target.owner_HW.long()
    elif len(target):
        masks_NHW = target.masks_NHW.bool()
        owner_HW = torch.where(masks_NHW.any(0), masks_NHW.byte().argmax(0), -1)
    else:
        owner_HW = labels_N.new_full((height, width), -1)
    labels_HW = torch.cat([labels_N, labels_N.new_full((1,), -1)])[owner_HW]  # owner -1 is the last one
    return F.pad(labels_HW, (0, padded_size[1] - width, 0, padded_size[0] - height), value=-1)

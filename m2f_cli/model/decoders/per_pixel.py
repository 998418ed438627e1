"""The per-pixel baselines of MaskFormer (docs/methods/published-behaviour.md#2-4; MaskFormer, section 4.1).

Both have the interface of the other decoders. They answer with one query per class, whose class is fixed and whose mask
logits are the logits of that class. So the class of a pixel is that of the query with the highest mask logit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...structures.predictions import LayerOutput, PixelFeatures, Prediction
from .plain import PlainDecoder

_CERTAIN = 1e4  # a difference of class logits whose softmax is exactly 0 and 1, also in half precision


class FixedClasses(nn.Module):
    """Constant class logits of queries that stand for one class each."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x_BQC: Tensor) -> Tensor:
        logits_QK = _CERTAIN * (torch.eye(self.num_classes, self.num_classes + 1, device=x_BQC.device) - 1)
        return logits_QK.to(x_BQC.dtype).expand(x_BQC.shape[0], -1, -1)


class PerPixelDecoder(nn.Module):
    """PerPixelBaseline: a linear classifier on the mask features.

    For its bias, the mask features get one more channel, which is 1 everywhere.
    """

    kind_of_levels = "maps"

    def __init__(self, num_classes: int, in_dim: int, mask_dim: int):
        super().__init__()
        self.classifier = nn.Conv2d(mask_dim, num_classes, 1)
        self.fixed_classes = FixedClasses(num_classes)
        nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: PixelFeatures, pilots: None = None) -> Prediction:
        mask_features_BCHW = features.mask_features_BCHW
        ones_B1HW = torch.ones_like(mask_features_BCHW[:, :1])
        embeds_QC = torch.cat([self.classifier.weight.flatten(1), self.classifier.bias[:, None]], dim=1)
        embeds_BQC = embeds_QC.expand(mask_features_BCHW.shape[0], -1, -1)
        output = LayerOutput(self.fixed_classes(embeds_BQC), embeds_BQC)
        return Prediction(torch.cat([mask_features_BCHW, ones_B1HW], dim=1), [output])


class PerPixelPlusDecoder(PlainDecoder):
    """PerPixelBaseline+: MaskFormer's decoder with one query per class and no class head."""

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        mask_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        enforce_input_proj: bool = False,
        pre_norm: bool = False,
        deep_supervision: bool = True,
    ):
        super().__init__(
            num_classes,
            in_dim,
            mask_dim,
            dim,
            num_classes,
            num_layers,
            num_heads,
            ffn_dim,
            dropout,
            enforce_input_proj,
            pre_norm,
            deep_supervision,
        )
        self.class_embed = FixedClasses(num_classes)

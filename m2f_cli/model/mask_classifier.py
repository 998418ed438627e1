"""The whole network: from images to masks and their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..structures.predictions import Prediction

if TYPE_CHECKING:
    from .pilots import Pilots


class MaskClassifier(nn.Module):
    """Backbone, pixel decoder and decoder (MaskFormer, section 3; Mask2Former, figure 2).

    Attributes:
        num_classes: without "no object".
        feature_cache: called with the backbone and images in training, in place of a backbone that is not trained.
    """

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module, decoder: nn.Module, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.feature_cache: Callable[[nn.Module, Tensor], Any] | None = None

    def forward(self, images_BCHW: Tensor, pilots: Pilots | None = None) -> Prediction:
        """Predict from normalised images of any size. Each part decides what of it runs in mixed precision.

        Args:
            pilots: MP-Former's queries of this batch, in training only; their answers come before the ordinary ones.
        """
        return self.decoder(self.pixel_decoder(self.features(images_BCHW)), pilots)

    def features(self, images_BCHW: Tensor) -> Any:
        """Apply the backbone; in training without keeping anything for a gradient, if nothing of it is trained."""
        if not (self.training and is_frozen(self.backbone)):
            return self.backbone(images_BCHW)
        with torch.no_grad():
            if self.feature_cache is not None:
                return self.feature_cache(self.backbone, images_BCHW)
            return self.backbone(images_BCHW)

    def train(self, mode: bool = True) -> MaskClassifier:
        """Set the mode of all parts. A backbone of which nothing is trained stays in evaluation mode."""
        super().train(mode)
        if mode and is_frozen(self.backbone):
            self.backbone.eval()
        return self


def is_frozen(module: nn.Module) -> bool:
    """Return True if no parameter of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())

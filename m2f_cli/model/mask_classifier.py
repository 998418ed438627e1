"""The whole network: from images to masks and their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..structures.predictions import Prediction

if TYPE_CHECKING:
    from .pilots import Pilots


class MaskClassifier(nn.Module):
    """Backbone, pixel decoder and decoder (MaskFormer, section 3; Mask2Former, figure 2).

    Attributes:
        num_classes: without "no object".
    """

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module, decoder: nn.Module, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    def forward(self, images_BCHW: Tensor, pilots: Pilots | None = None) -> Prediction:
        """Predict from normalised images of any size. Each part decides what of it runs in mixed precision.

        Args:
            pilots: MP-Former's queries of this batch, in training only; their answers come before the ordinary ones.
        """
        return self.decoder(self.pixel_decoder(self.backbone(images_BCHW)), pilots)

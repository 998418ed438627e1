"""The whole network: pictures to masks and their classes."""

from __future__ import annotations

from torch import Tensor, nn

from ..types import Prediction


class MaskClassifier(nn.Module):
    """Backbone, pixel decoder, decoder: mask classification (MaskFormer, section 3; Mask2Former, figure 2)."""

    def __init__(self, backbone: nn.Module, pixel_decoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    def forward(self, images_BCHW: Tensor) -> Prediction:
        """Normalised pictures of any size to the predictions of every decoder layer."""
        features = self.backbone(images_BCHW)
        pixel_features = self.pixel_decoder(features)
        return self.decoder(pixel_features)

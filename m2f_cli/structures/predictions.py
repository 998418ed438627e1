"""What a network returns: class logits and mask embeddings of each layer over one map of mask features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Projection:
    """The last linear map of mask features, not applied to them: weights (M, C), bias (M,).

    A mask is the dot product of an embedding with projected features, and the map can go to the other side:
    e · (W y + b) = (Wᵀ e) · y + e · b. Embeddings are a hundred, pixels of stride 4 are tens of thousands.
    """

    weight_MC: Tensor
    bias_M: Tensor

    def of_pixels(self, features_BCHW: Tensor) -> Tensor:
        """(B, M, H, W): the features as the method describes them."""
        return F.conv2d(features_BCHW, self.weight_MC[:, :, None, None], self.bias_M)

    def of_queries(self, embeds_BQM: Tensor) -> tuple[Tensor, Tensor]:
        """(…, Q, C), embeddings for features as they are, and (…, Q, 1), to be added to their products. fp32."""
        with torch.autocast(embeds_BQM.device.type, enabled=False):
            embeds_BQM = embeds_BQM.float()
            return embeds_BQM @ self.weight_MC, embeds_BQM @ self.bias_M[:, None]


@dataclass
class PixelFeatures:
    """What a pixel decoder gives to a decoder.

    mask_features_BCHW: stride 4: a mask is the dot product of an embedding with it, when both are `projected`.
    levels: the feature maps that the decoder attends to, coarse to fine.
    projection: what is still to be applied to the mask features, or to embeddings instead; never in training.
    """

    mask_features_BCHW: Tensor
    levels: list[Tensor]
    projection: Projection | None = None

    def projected(self) -> PixelFeatures:
        """The same with the projection applied."""
        if self.projection is None:
            return self
        return PixelFeatures(self.projection.of_pixels(self.mask_features_BCHW), self.levels)

    def of_queries(self, embeds_BQM: Tensor) -> tuple[Tensor, Tensor | float]:
        """What to multiply the mask features with as they are, and what to add then."""
        return (embeds_BQM, 0.0) if self.projection is None else self.projection.of_queries(embeds_BQM)


@dataclass
class LayerOutput:
    """One decoder layer's answer: class logits (B, Q, K) and mask embeddings (B, Q, C)."""

    class_logits_BQK: Tensor
    mask_embeds_BQC: Tensor


@dataclass
class Prediction:
    """The answers of all decoder layers, first to last, over one shared feature map. The last layer is the answer.

    A mask stays a dot product until somebody needs its pixels: `render` gives logits, for few queries and at the size
    that is needed. `projection` is that of `PixelFeatures`.
    """

    mask_features_BCHW: Tensor
    layers: list[LayerOutput]
    projection: Projection | None = None

    @property
    def last(self) -> LayerOutput:
        return self.layers[-1]

    def projected(self) -> Prediction:
        """The same with the projection applied to the mask features."""
        if self.projection is None:
            return self
        return Prediction(self.projection.of_pixels(self.mask_features_BCHW), self.layers)

    def of_queries(self, layer: int = -1) -> tuple[Tensor, Tensor | None]:
        """(B, Q, C) and (B, Q, 1): one layer's masks are the products of the first with the mask features as they are,
        plus the second, where there is one."""
        embeds_BQM = self.layers[layer].mask_embeds_BQC
        return (embeds_BQM, None) if self.projection is None else self.projection.of_queries(embeds_BQM)

    def render(
        self,
        size: tuple[int, int] | None = None,
        *,
        image: int | None = None,
        queries: Tensor | None = None,
        layer: int = -1,
    ) -> Tensor:
        """Mask logits of one layer.

        Args:
            size: (height, width) to resize to, bilinear with half-pixel centres; None keeps stride 4.
            image: one picture of the batch: the result is (Q, H, W) instead of (B, Q, H, W).
            queries: indices of the queries to render; needs `image`.
        """
        # Under autocast the embeddings are of lower precision; the masks are as precise as the features.
        embeds, offsets = self.of_queries(layer)
        embeds = embeds.to(self.mask_features_BCHW.dtype)
        if image is not None:
            few = slice(None) if queries is None else queries
            logits = torch.einsum("qc,chw->qhw", embeds[image][few], self.mask_features_BCHW[image])
            offsets = None if offsets is None else offsets[image][few]
        elif queries is not None:
            raise ValueError("render(queries=…) needs image=…: each picture keeps queries of its own.")
        else:
            logits = torch.einsum("bqc,bchw->bqhw", embeds, self.mask_features_BCHW)
        logits = logits if offsets is None else logits.add_(offsets[..., None])
        return logits if size is None else resize_logits(logits, size)


def resize_logits(logits_QHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (…, Q, H, W), half-pixel centres, no antialiasing: the published resize of mask logits."""
    if tuple(logits_QHW.shape[-2:]) == tuple(size):
        return logits_QHW
    batched = logits_QHW if logits_QHW.dim() == 4 else logits_QHW[None]
    resized = F.interpolate(batched, size=size, mode="bilinear", align_corners=False)
    return resized if logits_QHW.dim() == 4 else resized[0]


for _cls in (PixelFeatures, LayerOutput, Prediction):
    torch.export.register_dataclass(_cls)

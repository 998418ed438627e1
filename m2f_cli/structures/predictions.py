"""What a network returns: class logits and mask embeddings of each layer over one map of mask features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PixelFeatures:
    """What a pixel decoder gives to a decoder.

    Attributes:
        mask_features_BCHW: stride 4; a mask is the dot product of an embedding with it.
        levels: the feature maps that the decoder attends to, (B, C, H, W) each, coarse to fine.
    """

    mask_features_BCHW: Tensor
    levels: list[Tensor]


@dataclass
class LayerOutput:
    """The answer of one decoder layer.

    Attributes:
        class_logits_BQK: the last class is "no object".
        mask_embeds_BQC: as many channels as the mask features have.
    """

    class_logits_BQK: Tensor
    mask_embeds_BQC: Tensor


@dataclass
class Prediction:
    """The answers of all decoder layers, first to last, over one shared feature map. The last layer is the answer.

    A mask stays a dot product until somebody needs its pixels: `render` gives logits, for few queries and at the size
    that is needed.

    Attributes:
        mask_features_BCHW: stride 4.
        layers: at least one.
    """

    mask_features_BCHW: Tensor
    layers: list[LayerOutput]

    @property
    def last(self) -> LayerOutput:
        return self.layers[-1]

    def render(
        self,
        size: tuple[int, int] | None = None,
        *,
        image: int | None = None,
        queries: Tensor | None = None,
        layer: int = -1,
    ) -> Tensor:
        """Return the mask logits of one layer.

        Args:
            size: (height, width) to resize to, bilinear with half-pixel centres; None keeps stride 4.
            image: one image of the batch: the result is (Q, H, W) instead of (B, Q, H, W).
            queries: indices of the queries to render; needs `image`.
        """
        # Under autocast the embeddings are of lower precision; the masks are as precise as the features.
        embeds_BQC = self.layers[layer].mask_embeds_BQC.to(self.mask_features_BCHW.dtype)
        if image is not None:
            few = slice(None) if queries is None else queries
            logits = torch.einsum("qc,chw->qhw", embeds_BQC[image][few], self.mask_features_BCHW[image])
        elif queries is not None:
            raise ValueError("render(queries=…) needs image=…: each image keeps queries of its own.")
        else:
            logits = torch.einsum("bqc,bchw->bqhw", embeds_BQC, self.mask_features_BCHW)
        return logits if size is None else resize_logits(logits, size)


def resize_logits(logits_QHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (…, Q, H, W), bilinear with half-pixel centres, no antialiasing: the published resize of mask logits."""
    if tuple(logits_QHW.shape[-2:]) == tuple(size):
        return logits_QHW
    batched = logits_QHW if logits_QHW.dim() == 4 else logits_QHW[None]
    resized = F.interpolate(batched, size=size, mode="bilinear", align_corners=False)
    return resized if logits_QHW.dim() == 4 else resized[0]


for _cls in (PixelFeatures, LayerOutput, Prediction):
    torch.export.register_dataclass(_cls)

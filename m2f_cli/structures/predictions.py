"""Outputs of a network: class logits and mask embeddings of each layer, and maps of mask features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PixelFeatures:
    """Output of a pixel decoder and input of a decoder.

    Attributes:
        mask_features_BCHW: features at stride 4; a mask is the dot product of an embedding with them.
        levels: feature maps that the decoder attends to, (B, C, H, W) each, coarse to fine.
    """

    mask_features_BCHW: Tensor
    levels: list[Tensor]


@dataclass
class Tokens:
    """Output of an encoder without maps (a plain ViT), and input of a decoder whose queries are tokens beside them.

    Attributes:
        levels: tokens after chosen blocks, (B, P + g·g', C) each: P prefix tokens, then the patches, row by row.
        num_prefix: number P of prefix tokens (class token and registers).
        grid: rows g and columns g' of patches.
    """

    levels: list[Tensor]
    num_prefix: int
    grid: tuple[int, int]


@dataclass
class LayerOutput:
    """Output of one decoder layer.

    Attributes:
        class_logits_BQK: logits of the classes; the last one is "no object".
        mask_embeds_BQC: mask embeddings, with as many channels as the mask features have.
        mask_features_BCHW: mask features of this layer. None: those of the prediction.
    """

    class_logits_BQK: Tensor
    mask_embeds_BQC: Tensor
    mask_features_BCHW: Tensor | None = None


@dataclass
class Prediction:
    """Outputs of all decoder layers; the last layer is the result. Layers share a feature map or have their own.

    A mask stays a dot product until its pixels are needed. `render` computes the logits of chosen queries at the size
    that is needed.

    Attributes:
        mask_features_BCHW: features at stride 4, of every layer that has none of its own.
        layers: outputs of the decoder layers, first to last; at least one.
    """

    mask_features_BCHW: Tensor
    layers: list[LayerOutput]

    @property
    def last(self) -> LayerOutput:
        return self.layers[-1]

    def features(self, layer: int = -1) -> Tensor:
        """Return the mask features of a layer, (B, C, H, W)."""
        own = self.layers[layer].mask_features_BCHW
        return self.mask_features_BCHW if own is None else own

    def by_features(self) -> list[Prediction]:
        """Return predictions whose layers share a map each, in the order of the layers: one if all share one map."""
        if all(layer.mask_features_BCHW is None for layer in self.layers):
            return [self]
        alone = [replace(layer, mask_features_BCHW=None) for layer in self.layers]
        return [Prediction(self.features(i), [layer]) for i, layer in enumerate(alone)]

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
            layer: index of the decoder layer.
        """
        features_BCHW = self.features(layer)
        # Under autocast the embeddings are of lower precision; the masks are as precise as the features.
        embeds_BQC = self.layers[layer].mask_embeds_BQC.to(features_BCHW.dtype)
        if image is not None:
            chosen = slice(None) if queries is None else queries
            logits = torch.einsum("qc,chw->qhw", embeds_BQC[image][chosen], features_BCHW[image])
        elif queries is not None:
            raise ValueError("render(queries=…) needs image=…: each image keeps queries of its own.")
        else:
            logits = torch.einsum("bqc,bchw->bqhw", embeds_BQC, features_BCHW)
        return logits if size is None else resize_logits(logits, size)


def resize_logits(logits_QHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits (…, Q, H, W) as published: bilinear with half-pixel centres, without antialiasing."""
    if tuple(logits_QHW.shape[-2:]) == tuple(size):
        return logits_QHW
    batched = logits_QHW if logits_QHW.dim() == 4 else logits_QHW[None]
    resized = F.interpolate(batched, size=size, mode="bilinear", align_corners=False)
    return resized if logits_QHW.dim() == 4 else resized[0]


for _cls in (PixelFeatures, Tokens, LayerOutput, Prediction):
    torch.export.register_dataclass(_cls)

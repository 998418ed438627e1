"""The pixel decoder of MaskFormer: a feature pyramid network (docs/methods/published-behaviour.md#3-6; MaskFormer,
section 4.1). The original configurations call it BasePixelDecoder. With three levels it serves Mask2Former's decoder,
faster than deformable attention and less exact (Mask2Former, table 4e)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ...structures.predictions import PixelFeatures
from ..layers.conv import ConvNorm, group_norm


class FPNPixelDecoder(nn.Module):
    """Feature pyramid from stride 32 to stride 4: upsample (nearest), add, convolve.

    Args:
        channels: of the backbone's features, by stride.
        dim: width of the pyramid; mask_dim: channels of the mask features.
        num_levels: 1: a decoder attends to stride 32 of the backbone, unchanged. 3: to three maps of the pyramid.
        finest: stride of the finest of three levels: 8, or 4 for small images and objects.
    """

    lateral_strides = (16, 8, 4)
    kind_of_levels = "maps"

    def __init__(self, channels: Mapping[int, int], dim: int, mask_dim: int, num_levels: int = 1, finest: int = 8):
        super().__init__()
        if finest not in (8, 4):
            raise ValueError(f"finest is {finest}, where 8 or 4 is possible")
        if num_levels not in (1, 3):
            raise ValueError(f"num_levels is {num_levels}, where 1 or 3 is possible")
        top_dim = self._top_channels(channels, dim)
        self.dim, self.mask_dim, self.num_levels = top_dim if num_levels == 1 else dim, mask_dim, num_levels
        self.finest = finest
        self.top = ConvNorm(top_dim, dim, 3, group_norm, relu=True)
        self.laterals = nn.ModuleList(ConvNorm(channels[stride], dim, 1, group_norm) for stride in self.lateral_strides)
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3, group_norm, relu=True) for _ in self.lateral_strides)
        self.mask_features = nn.Conv2d(dim, mask_dim, 3, padding=1)
        for conv in (*(part.conv for part in (self.top, *self.laterals, *self.outputs)), self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    @staticmethod
    def _top_channels(channels: Mapping[int, int], dim: int) -> int:
        """Return the width of the map that the pyramid starts from, which is also the only level for the decoder."""
        return channels[32]

    def forward(self, features: Mapping[int, Tensor]) -> PixelFeatures:
        level_BCHW = self.encode(features[32])
        maps = [self.top(level_BCHW)]
        for stride, lateral, output in zip(self.lateral_strides, self.laterals, self.outputs, strict=True):
            x = lateral(features[stride])
            maps.append(output(x + F.interpolate(maps[-1], size=x.shape[-2:], mode="nearest")))
        three = maps[:3] if self.finest == 8 else maps[1:]
        return PixelFeatures(self.mask_features(maps[-1]).float(), [level_BCHW] if self.num_levels == 1 else three)

    def encode(self, coarsest_BCHW: Tensor) -> Tensor:
        """Return the coarsest map, unchanged. Subclasses encode it before the pyramid uses it."""
        return coarsest_BCHW

"""The feature-aligned pyramid network (FaPN, Huang et al., ICCV 2021).

A feature pyramid adds an upsampled coarse map to a fine one, although their edges do not match. FaPN first
weighs the fine map's channels (feature selection, section 3.2), then lets a modulated deformable convolution move the
coarse map onto it (feature alignment, section 3.1), and adds the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ...structures.predictions import PixelFeatures
from ..layers.conv import ConvNorm, group_norm

KERNEL = 3


class FeatureSelection(nn.Module):
    """Weighting of the channels of a fine map, x + gate·x, then a 1x1 convolution."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.gate = nn.Conv2d(in_channels, in_channels, 1)
        self.project = ConvNorm(in_channels, dim, 1, group_norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC11 = self.gate(x_BCHW.mean((2, 3), keepdim=True)).sigmoid()
        return self.project(x_BCHW + gate_BC11 * x_BCHW)


class FeatureAlignment(nn.Module):
    """Alignment of an upsampled coarse map with a fine one: a 3x3 deformable convolution (DCN v2), then ReLU.

    Offsets and modulations come from both maps. They start at 0, which is a plain 3x3 convolution, half modulated.

    Args:
        groups: of channels; each has offsets of its own.
    """

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.groups = groups
        self.compare = ConvNorm(2 * dim, dim, 1, group_norm)
        self.offsets = nn.Conv2d(dim, 3 * groups * KERNEL**2, KERNEL, padding=KERNEL // 2)
        self.align = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, fine_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        """Return the coarse map, aligned. Both maps have the size of the fine one."""
        found = self.offsets(self.compare(torch.cat([fine_BCHW, 2 * coarse_BCHW], dim=1)))
        count = 2 * self.groups * KERNEL**2  # y and x of each point; then come the modulations
        offsets = found[:, :count]
        moved_BCHW = deform_conv2d(
            coarse_BCHW,
            torch.where(offsets == offsets, offsets, 0.0),  # torchvision reads outside of the map where one is NaN
            self.align.weight,
            self.align.bias,
            padding=KERNEL // 2,
            mask=found[:, count:].sigmoid(),
        )
        return F.relu(moved_BCHW)


class AlignedPixelDecoder(nn.Module):
    """FaPN over strides 32 to 4. Always fp32, also under autocast.

    How the authors of Mask2Former combined FaPN with their decoder was not published. Here, as in their other pixel
    decoders, the three coarse maps are the levels, and a 1x1 convolution of the finest makes the mask features.

    Args:
        channels: of the backbone's features, by stride.
        dim: width of the pyramid, a multiple of 32; mask_dim: channels of the mask features.
        groups: of each deformable convolution (8 in FaPN).
    """

    strides = (32, 16, 8, 4)
    kind_of_levels, num_levels = "maps", 3

    def __init__(self, channels: Mapping[int, int], dim: int, mask_dim: int, groups: int):
        super().__init__()
        if dim % groups:
            raise ValueError(f"dim {dim} is no multiple of groups {groups}")
        self.dim, self.mask_dim = dim, mask_dim
        self.top = ConvNorm(channels[32], dim, 1, group_norm)
        self.selections = nn.ModuleList(FeatureSelection(channels[stride], dim) for stride in self.strides[1:])
        self.alignments = nn.ModuleList(FeatureAlignment(dim, groups) for _ in self.strides[1:])
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3, group_norm, relu=True) for _ in self.strides)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        for conv in [self.top.conv, self.mask_features, *(output.conv for output in self.outputs)]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: Mapping[int, Tensor]) -> PixelFeatures:
        with torch.autocast(features[4].device.type, enabled=False):
            maps = self.pyramid({stride: feature.float() for stride, feature in features.items()})
            *levels, finest = [output(x) for output, x in zip(self.outputs, maps, strict=True)]
            return PixelFeatures(self.mask_features(finest), levels)

    def pyramid(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the aligned maps, coarse to fine."""
        maps = [self.top(features[32])]
        for stride, select, align in zip(self.strides[1:], self.selections, self.alignments, strict=True):
            fine = select(features[stride])
            coarse = F.interpolate(maps[-1], size=fine.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(fine + align(fine, coarse))
        return maps

"""ResNet (He et al. 2015) as in detectron2: the 3x3 convolution has the stride
(docs/methods/published-behaviour.md#3-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.dispatch import is_tracing
from ..layers.conv import ConvNorm, FrozenBatchNorm

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def fixed_affine_bn(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm whose statistics move while its scale and shift are not trained, as in MMSegmentation
    (docs/methods/published-behaviour.md#2-6)."""
    return nn.BatchNorm2d(channels).requires_grad_(False)


# SyncBN is ordinary batch norm until training converts it for several processes.
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm,
    "fixed_affine_bn": fixed_affine_bn,
    "sync_bn": nn.BatchNorm2d,
    "bn": nn.BatchNorm2d,
}


class BasicBlock(nn.Module):
    """Block of ResNet-18 and -34: two 3x3 convolutions, the first with the stride, and a shortcut."""

    recomputable = True

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Callable):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, norm, stride=stride, dilation=dilation, relu=True)
        self.conv2 = ConvNorm(width, width, 3, norm, relu=True)
        changes = in_channels != width or stride != 1
        self.shortcut = ConvNorm(in_channels, width, 1, norm, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x), residual=self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride, dilation), 1x1 convolutions and a shortcut: the block of ResNet-50 and -101."""

    recomputable = True

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Callable):
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = ConvNorm(in_channels, width, 1, norm, relu=True)
        self.conv2 = ConvNorm(width, width, 3, norm, stride=stride, dilation=dilation, relu=True)
        self.conv3 = ConvNorm(width, out_channels, 1, norm, relu=True)
        changes = in_channels != out_channels or stride != 1
        self.shortcut = ConvNorm(in_channels, out_channels, 1, norm, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)), residual=self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-50 or -101 as published, or ResNet-18 or -34 for small data sets and machines.

    Args:
        depth: 18, 34, 50 or 101.
        stem: "basic" is one 7x7 convolution; "deeplab" is three 3x3 ones and dilations 1, 2, 4 in the last stage
            (R50c / R101c), the strides unchanged.
        norm: "frozen_bn" (constants), "fixed_affine_bn" (statistics move), "sync_bn" or "bn" (trained).
        stem_channels, width: 64 and 64 in every published network; narrower ones are for tests.
        pretrained: where the ImageNet weights come from; read by training only.
    """

    def __init__(
        self,
        depth: int,
        stem: Literal["basic", "deeplab"],
        norm: str,
        *,
        stem_channels: int = 64,
        width: int = 64,
        pretrained: str | None = None,
    ):
        super().__init__()
        if depth not in DEPTHS or norm not in NORMS or stem not in ("basic", "deeplab"):
            known = f"depth 18, 34, 50 or 101, stem basic or deeplab, norm {', '.join(NORMS)}"
            raise ValueError(f"resnet takes {known}; not {depth}, {stem}, {norm}")
        make_norm = NORMS[norm]
        self.stem = nn.Sequential(*_stem(stem, stem_channels, make_norm))
        block = BasicBlock if depth < 50 else Bottleneck
        out_channels = [block.expansion * width * 2**i for i in range(4)]
        dilations = [(1,)] * 3 + [(1, 2, 4) if stem == "deeplab" else (1,)]
        self.stages = nn.ModuleList()
        in_channels = stem_channels
        for i, blocks in enumerate(DEPTHS[depth]):
            stage = nn.Sequential()
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                dilation = dilations[i][j % len(dilations[i])]
                stage.append(block(in_channels, width * 2**i, stride, dilation, make_norm))
                in_channels = out_channels[i]
            self.stages.append(stage)
        self.channels = dict(zip((4, 8, 16, 32), out_channels, strict=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> dict[int, Tensor]:
        if images_BCHW.device.type == "cpu" and not torch.is_grad_enabled() and not is_tracing():
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)  # oneDNN's own, and the decoders'
        x = F.max_pool2d(self.stem(images_BCHW), 3, stride=2, padding=1)
        features = {}
        for stride, stage in zip(self.channels, self.stages, strict=True):
            x = stage(x)
            features[stride] = x
        return features


def _stem(kind: str, channels: int, norm: Callable) -> list[ConvNorm]:
    if kind == "basic":
        return [ConvNorm(3, channels, 7, norm, stride=2, relu=True)]
    half = channels // 2
    return [
        ConvNorm(3, half, 3, norm, stride=2, relu=True),
        ConvNorm(half, half, 3, norm, relu=True),
        ConvNorm(half, channels, 3, norm, relu=True),
    ]

"""A backbone of one convolution per stride, for m2f.

m2f needs of a backbone: `channels`, from stride to channels, and a `forward` from normalised images to a map per stride
(4, 8, 16 and 32). The arguments of the constructor are the options in the YAML.
"""

from __future__ import annotations

from torch import Tensor, nn


class Pyramid(nn.Module):
    """Four convolutions, each on the result of the last.

    Args:
        width: channels of every map.
    """

    def __init__(self, width: int):
        super().__init__()
        self.channels = dict.fromkeys((4, 8, 16, 32), width)
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.stages = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in range(3))

    def forward(self, images_BCHW: Tensor) -> dict[int, Tensor]:
        features = {4: self.stem(images_BCHW)}
        for stride, stage in zip((8, 16, 32), self.stages, strict=True):
            features[stride] = stage(features[stride // 2].relu())
        return features

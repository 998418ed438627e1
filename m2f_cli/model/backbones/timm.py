"""Any timm model that gives features at strides 4, 8, 16 and 32 (the extra `m2f-cli[timm]`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...runtime.timm_models import create


class Timm(nn.Module):
    """Backbone from a timm model with `features_only`.

    Args:
        model: timm's name of it, such as "convnext_tiny" or "resnet50d".
        pretrained: read by training only; weights of a whole model come from its checkpoint.
        options: passed on to `timm.create_model`, without those that say where weights come from.

    Raises:
        MissingDependency: timm is not installed.
        ConfigError: timm does not know the name, the model has no features at strides 4, 8, 16 and 32, or an option
            makes timm read a file.
    """

    def __init__(self, model: str, *, pretrained: str | None = None, **options):
        super().__init__()
        self.net, self.model = create(model, features_only=True, **options), model
        strides = {stride: index for index, stride in enumerate(self.net.feature_info.reduction())}
        missing = [stride for stride in (4, 8, 16, 32) if stride not in strides]
        if missing:
            raise ConfigError(
                f"The timm model {model!r} has features at strides {list(strides)}, but 4, 8, 16 and 32 are needed.",
                hint="Choose a hierarchical model, such as convnext_tiny, resnet50 or swinv2_tiny_window8_256.",
            )
        self.indices = {stride: strides[stride] for stride in (4, 8, 16, 32)}
        channels = self.net.feature_info.channels()
        self.channels = {stride: channels[index] for stride, index in self.indices.items()}

    def forward(self, images_BCHW: Tensor) -> dict[int, Tensor]:
        """Return the maps.

        Raises:
            ConfigError: the model takes images of another size alone.
        """
        try:
            maps = self.net(images_BCHW)
        except AssertionError as error:
            raise ConfigError(
                f"The timm model {self.model} cannot take images of {' x '.join(map(str, images_BCHW.shape[-2:]))} "
                f"pixels: {str(error).rstrip('.')}.",
                hint="Set model.backbone.img_size, and pad or resize every image to it; or choose another model.",
            ) from error
        return {
            stride: self._channels_first(maps[index], self.channels[stride]) for stride, index in self.indices.items()
        }

    @staticmethod
    def _channels_first(x: Tensor, channels: int) -> Tensor:
        # timm's Swin gives (B, H, W, C)
        return x if x.shape[1] == channels else torch.movedim(x, -1, 1)

"""Any timm model that gives features at strides 4, 8, 16 and 32 (the extra `m2f-cli[timm]`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, MissingDependency, unknown_name

# Options by which timm would download or unpickle files; only our own readers read weights.
_FETCHING = ("checkpoint_path", "cache_dir", "pretrained_")


def create(model: str, **options: Any) -> nn.Module:
    """Make a timm model with random weights.

    Args:
        model: timm's name of it.
        options: passed on to `timm.create_model`.

    Raises:
        MissingDependency: timm is not installed.
        ConfigError: timm does not know the name, or an option makes timm read a file.
    """
    fetching = next((name for name in options if name.startswith(_FETCHING)), None)
    if fetching is not None:
        raise ConfigError(
            f"The option {fetching!r} of the timm model {model!r} would make timm read a file by itself.",
            hint="Name the weights as `pretrained`: m2f reads them without running what is in them.",
        )
    return imported(model).create_model(model, pretrained=False, **options)


def imported(model: str) -> Any:
    """Return the package timm, which knows `model`. Raises as `create`."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingDependency("timm", f"The backbone {model!r}", "timm") from error
    if not timm.is_model(model):
        raise unknown_name("timm model", model, timm.list_models())
    return timm


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
        self.net = create(model, features_only=True, **options)
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
        maps = self.net(images_BCHW)
        return {
            stride: self._channels_first(maps[index], self.channels[stride]) for stride, index in self.indices.items()
        }

    @staticmethod
    def _channels_first(x: Tensor, channels: int) -> Tensor:
        # timm's Swin gives (B, H, W, C)
        return x if x.shape[1] == channels else torch.movedim(x, -1, 1)

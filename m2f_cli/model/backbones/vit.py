"""Plain vision transformers of timm (the extra `m2f-cli[timm]`): as a pyramid of maps, or as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...ops.cpu.linear import Linear
from ...runtime.timm_models import create, imported
from ...structures.predictions import Tokens
from ..layers.conv import ChannelNorm, ConvNorm, Doubling
from ..layers.positions import RotaryPositions

PATCH = 16  # pixels; masks are predicted at a quarter of it
_FAMILIES = ("vision_transformer", "deit", "eva", "beit")  # modules of timm whose models are plain ViTs


def make_vit(
    model: str, img_size: int | Sequence[int], patch_size: Any = PATCH, drop_path: float = 0.0, **options: Any
) -> nn.Module:
    """Make a plain ViT of timm without a head, with patches of 16 pixels.

    Args:
        model: timm's name of it.
        img_size: side, or (height, width), that its table of positions is made for, in pixels.
        patch_size: 16. timm resamples the kernel when it loads weights of other patches.
        drop_path: stochastic depth of the last block; that of earlier ones grows linearly from 0.
        options: passed on to `timm.create_model`.

    Raises:
        MissingDependency: timm is not installed.
        ConfigError: timm does not know the name, the model is no plain ViT, or a size is impossible.
    """
    entry = imported(model).models.model_entrypoint(model).__module__
    family = entry.rsplit(".", 1)[-1]
    if family not in _FAMILIES:
        raise ConfigError(
            f"The timm model {model!r} is no plain ViT (it is of {entry}).",
            hint="Choose one such as vit_small_patch14_reg4_dinov2, or the backbone timm for hierarchical models.",
        )
    if patch_size != PATCH:
        raise ConfigError(
            f"patch_size is {patch_size}, but the patches of a ViT in m2f are squares of {PATCH} pixels.",
            hint=f"Leave patch_size out: weights of other patches are resampled to {PATCH} when they are loaded.",
        )
    sides = [img_size] if isinstance(img_size, int) else list(img_size)
    if not 1 <= len(sides) <= 2 or any(not isinstance(side, int) or side < PATCH or side % PATCH for side in sides):
        raise ConfigError(
            f"img_size is {img_size}, where a multiple of {PATCH} pixels is needed, or two of them (height, width)."
        )
    # BEiT's tables of relative positions fit one size only.
    any_size = {} if family == "beit" else {"dynamic_img_size": True}
    given = {"num_classes": 0, "global_pool": "", "drop_path_rate": drop_path, **any_size}
    net = create(model, img_size=(sides[0], sides[-1]), patch_size=PATCH, **given, **options)
    for module in net.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear  # the same parameters; converted to bf16 once, not in each call
    for mlp in (module for module in net.modules() if type(module).__name__ == "Mlp"):
        if type(mlp.act) is nn.GELU and mlp.act.approximate == "none" and isinstance(mlp.fc1, Linear):
            mlp.fc1.activation, mlp.act = "gelu", nn.Identity()
    if _has_rope_of_dinov3(net):
        net.rope = RotaryPositions(net.rope.dim)
    return net


def _has_rope_of_dinov3(net: nn.Module) -> bool:
    """Return True if the rotary positions of a timm model are those of `RotaryPositions`."""
    rope = getattr(net, "rope", None)
    is_usual = {"temperature": RotaryPositions.base, "normalize_coords": "separate", "rotate_half": True}
    is_usual |= {"grid_offset": 0.0, "grid_indexing": "ij", "aug_active": False, "min_period": None}
    is_dinov3 = type(rope).__name__ == "RotaryEmbeddingDinoV3"
    return is_dinov3 and all(getattr(rope, name, value) == value for name, value in is_usual.items())


def lr_depths(vit: nn.Module, prefix: str) -> dict[str, int | None]:
    """Return the number of the block of each parameter of (a part of) a ViT, below `prefix`; -1 for its embeddings,
    None for its final norm. Learning rates by depth need it."""

    def depth(part: str, *rest: str) -> int | None:
        return int(rest[0]) if part == "blocks" else None if part == "norm" else -1

    return {prefix + name: depth(*name.split(".")) for name, _ in vit.named_parameters()}


class _Encoder(nn.Module):
    """Base class: a plain ViT up to the last block that is used. `pretrained` is read by training only.

    Attributes:
        net: timm's model.
        dim: width of the tokens.
    """

    def __init__(
        self, model: str, img_size: Any, levels: Sequence[int], norm: bool, /, pretrained: Any = None, **options: Any
    ):
        super().__init__()
        self.net, self.model = make_vit(model, img_size, **options), model
        depth = len(self.net.blocks)
        self.levels = [depth - 1] if levels == () else list(levels)
        if not self.levels or any(type(i) is not int or not 0 <= i < depth for i in self.levels):
            raise ConfigError(f"levels is {levels}, where numbers of blocks of {model} are needed: 0 to {depth - 1}.")
        self.net.blocks = self.net.blocks[: max(self.levels) + 1]
        if not norm:
            self.net.norm = nn.Identity()
        self.net.fc_norm = nn.Identity()  # of the classifier; a weight without a gradient stops distributed training
        self.dim, self.norm = self.net.embed_dim, norm

    def lr_depths(self) -> dict[str, int | None]:
        return lr_depths(self.net, "net.")

    def encode(self, images_BCHW: Tensor, **options: Any) -> list[Any]:
        """Return the outputs of the chosen blocks as timm gives them.

        Raises:
            ConfigError: the model cannot take images of this size.
        """
        size = tuple(images_BCHW.shape[-2:])
        if any(side % PATCH for side in size):
            raise ConfigError(
                f"An image of {size[0]} x {size[1]} pixels does not divide into patches of {PATCH} x {PATCH}.",
                hint=f"Pad images to multiples of {PATCH}: test.size_divisor={PATCH}, in training the crop size.",
            )
        fixed = not getattr(self.net, "dynamic_img_size", False)
        if fixed and size != tuple(self.net.patch_embed.img_size):
            wanted = " x ".join(map(str, self.net.patch_embed.img_size))
            raise ConfigError(
                f"The relative positions of {self.model} are for {wanted} pixels, not {size[0]} x {size[1]}.",
                hint="Set model.backbone.img_size, and pad or resize every image to it; or choose a ViT without them.",
            )
        return self.net.forward_intermediates(
            images_BCHW, indices=self.levels, norm=self.norm, intermediates_only=True, **options
        )


class TokenEncoder(_Encoder):
    """Backbone that gives the tokens of a plain ViT after chosen blocks.

    Args:
        model: timm's name, such as "vit_large_patch14_reg4_dinov2".
        img_size: side, or (height, width), that its table of positions is made for; other sizes are resampled.
        levels: numbers of the blocks, from 0; none means the last. Blocks after them are left out.
        norm: whether each level passes the final norm.
        frozen: whether it is never trained.
        options: `pretrained`, read by training only; `patch_size`, `drop_path` and options of timm, see `make_vit`.

    Raises:
        MissingDependency, ConfigError: as `make_vit`, or there is no such block.
    """

    def __init__(
        self,
        model: str,
        img_size: int | Sequence[int],
        *,
        levels: Sequence[int] = (),
        norm: bool = False,
        frozen: bool = False,
        **options: Any,
    ):
        super().__init__(model, img_size, levels, norm, **options)
        self.channels = {PATCH: self.dim}
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TokenEncoder:
        return super().train(mode and not self.frozen)

    def forward(self, images_BCHW: Tensor) -> Tokens:
        num_prefix = self.net.num_prefix_tokens
        levels = self.encode(images_BCHW, output_fmt="NLC", return_prefix_tokens=num_prefix > 0)
        if num_prefix:
            levels = [torch.cat([prefix, patches], dim=1) for patches, prefix in levels]
        height, width = images_BCHW.shape[-2:]
        return Tokens(levels, num_prefix, (height // PATCH, width // PATCH))


class Pyramid(_Encoder):
    """Backbone that makes maps at strides 4, 8, 16 and 32 of a plain ViT's last block (ViTDet, section 3).

    Args:
        model: timm's name, such as "vit_base_patch16_dinov3_qkvb".
        img_size: as in `TokenEncoder`.
        dim: width of all maps, made by convolutions and norms. None: a quarter, half and twice the ViT's own width.
        options: as in `TokenEncoder`.

    Raises:
        MissingDependency, ConfigError: as `make_vit`.
    """

    new_parts = ("branches",)

    def __init__(
        self,
        model: str,
        img_size: int | Sequence[int],
        *,
        dim: int | None = None,
        **options: Any,
    ):
        super().__init__(model, img_size, (), False, **options)
        d = self.dim
        widths = {4: d // 4, 8: d // 2, 16: d, 32: d}
        branches: dict[int, list[nn.Module]] = {
            4: [Doubling(d, d // 2), ChannelNorm(d // 2), nn.GELU(), Doubling(d // 2, d // 4)],
            8: [Doubling(d, d // 2)],
            16: [],
            32: [nn.MaxPool2d(2)],
        }
        self.channels = widths if dim is None else dict.fromkeys(widths, dim)
        self.branches = nn.ModuleDict()
        for stride, layers in branches.items():
            head = [] if dim is None else [_normed(widths[stride], dim, 1), _normed(dim, dim, 3)]
            self.branches[str(stride)] = nn.Sequential(*layers, *head)

    def forward(self, images_BCHW: Tensor) -> dict[int, Tensor]:
        [map_BCHW] = self.encode(images_BCHW, output_fmt="NCHW")
        return {int(stride): branch(map_BCHW) for stride, branch in self.branches.items()}


def _normed(in_dim: int, out_dim: int, kernel: int) -> nn.Module:
    return ConvNorm(in_dim, out_dim, kernel, ChannelNorm)

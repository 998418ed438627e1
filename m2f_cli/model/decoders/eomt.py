"""The decoder of EoMT: the last blocks of the ViT whose first blocks are the backbone (docs/methods/plain-vit.md)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import ConfigError
from ..backbones.vit import PATCH, lr_depths, make_vit
from .query_tokens import MASKING, QueryTokenDecoder


class EoMTDecoder(QueryTokenDecoder):
    """Decoder that is the end of a plain ViT: its last blocks, its final norm, and heads.

    Args:
        model: timm's name of the ViT, the same as the backbone's.
        first_block: number of the first of its blocks, in the whole ViT.
        num_blocks: number of its blocks.
        options: `MASKING` of the base class, and options of timm, the same as the backbone's.

    Raises:
        MissingDependency, ConfigError: as `make_vit`, or queries cannot be tokens of this ViT.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        mask_dim: int,
        model: str,
        num_queries: int,
        first_block: int,
        num_blocks: int,
        **options: Any,
    ):
        masking = {name: options.pop(name) for name in MASKING if name in options}
        super().__init__(num_classes, in_dim, mask_dim, num_queries, num_blocks, **masking)
        # of the whole depth: drop path and some kinds of attention depend on the number of a block
        net = make_vit(model, 2 * PATCH, depth=first_block + num_blocks, **options)
        if not hasattr(net, "dynamic_img_size") or getattr(net, "rope_mixed", False):
            raise ConfigError(
                f"Queries cannot be tokens of {model}, whose blocks have tables of positions of their own.",
                hint="Choose a ViT such as vit_large_patch14_reg4_dinov2 or vit_large_patch16_dinov3_qkvb.",
            )
        if net.embed_dim != in_dim:
            raise ConfigError(
                f"The decoder's ViT {model} is {net.embed_dim} wide, but the backbone gives {in_dim} channels.",
                hint="Name the same ViT, with the same options, as model.backbone.model and model.decoder.model.",
            )
        self.vit = nn.Module()  # blocks keep the numbers of the whole ViT
        self.vit.blocks = nn.ModuleDict({str(i): net.blocks[i] for i in range(first_block, len(net.blocks))})
        self.vit.norm = net.norm
        self.rope = getattr(net, "rope", None)
        for block in self.blocks:
            if self.rope is not None:
                block.attn.num_prefix_tokens = 0  # the rotation is made for all tokens
            block.recomputable = True

    def lr_depths(self) -> dict[str, int | None]:
        return lr_depths(self.vit, "vit.")

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks.values())

    @property
    def norm(self) -> nn.Module:
        return self.vit.norm

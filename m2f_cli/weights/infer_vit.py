"""Inference of a plain ViT under a mask head, EoMT or PMT, from the shapes of a file."""

from __future__ import annotations

import math

from ..config.schema import Component, ModelConfig
from ..errors import WeightsError
from .key_mapping import OurView

PATCH = 16  # pixels
# Width of the published ViTs: name, blocks, attention heads.
SIZES = {384: ("small", 12, 6), 768: ("base", 12, 12), 1024: ("large", 24, 16), 1536: ("giant", 40, 24)}
LEVELS = {12: [2, 5, 8, 11], 24: [5, 11, 17, 23]}  # blocks that PMT fuses, by number of blocks
USUAL_SIDE = 640  # of a network without a table of positions, which takes any size


def infer_vit(view: OurView) -> ModelConfig:
    """Return the configuration of an EoMT or PMT.

    Raises:
        WeightsError: the ViT is none of the published sizes.
    """
    num_queries, dim = view["decoder.query_feat.weight"]
    depth = view.count("backbone.net.blocks.{}.norm1.weight")
    if dim not in SIZES or SIZES[dim][1] != depth:
        known = ", ".join(f"{width} x {blocks}" for width, (_, blocks, _) in SIZES.items())
        raise WeightsError(
            f"The ViT of the file is {dim} wide and {depth} blocks deep; the published ones are {known}.",
            hint="A folder of transformers, or a checkpoint of m2f, says the rest of a network of another size.",
        )
    size = SIZES[dim][0]
    has_table = "backbone.net.pos_embed" in view
    name = f"vit_{size}_patch14_reg4_dinov2" if has_table else f"vit_{size}_patch16_dinov3_qkvb"
    side = PATCH * math.isqrt(view["backbone.net.pos_embed"][1]) if has_table else USUAL_SIDE
    num_blocks = view["decoder.attn_mask_probs"][0]
    if "pixel_decoder.scales.0" in view:
        return _pmt(view, name, side, num_queries, num_blocks)
    return eomt(name, side, depth, num_blocks, num_queries)


def eomt(model: str, img_size: int, depth: int, num_blocks: int, num_queries: int, **options: object) -> ModelConfig:
    """Return the configuration of an EoMT.

    Args:
        model: timm's name of the ViT.
        depth: its blocks; the last `num_blocks` carry queries.
        options: of timm, for a ViT that differs from its name.
    """
    first = depth - num_blocks
    whole = {"depth": depth} if options else {}
    return ModelConfig(
        method="eomt",
        backbone=Component(name="vit_tokens", model=model, img_size=img_size, levels=[first - 1], **whole, **options),
        pixel_decoder=Component(name="tokens"),
        decoder=Component(
            name="eomt", model=model, num_queries=num_queries, first_block=first, num_blocks=num_blocks, **options
        ),
    )


def _pmt(view: OurView, model: str, img_size: int, num_queries: int, num_blocks: int) -> ModelConfig:
    dim = view["decoder.query_feat.weight"][1]
    _, depth, heads = SIZES[dim]
    levels = LEVELS[depth]
    return ModelConfig(
        method="pmt",
        backbone=Component(name="vit_tokens", model=model, img_size=img_size, levels=levels, norm=True, frozen=True),
        pixel_decoder=Component(name="lateral", num_levels=len(levels)),
        decoder=Component(
            name="pmt",
            num_queries=num_queries,
            num_blocks=num_blocks,
            num_heads=heads,
            ffn_dim=view["decoder.layers.0.mlp.fc1.weight"][0],
        ),
    )

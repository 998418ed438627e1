"""From the shapes of a foreign file to the configuration of its network."""

from __future__ import annotations

import math
from typing import Any

from ..config import Component, ModelConfig
from ..errors import WeightsError
from .names import OurView

HEADS = 8  # attention heads of every published pixel decoder and decoder: the shapes do not tell
DROP_PATH = 0.3  # of every published Swin (facts, first table); matters in training only
_RESNET_DEPTHS = {6: 50, 23: 101}  # by the number of blocks of the third stage


def infer(view: OurView) -> tuple[ModelConfig, list[str]]:
    """The network that a file is of, and what had to be assumed.

    Raises:
        WeightsError: it is no Mask2Former or MP-Former with a backbone that m2f knows.
    """
    for needed in ("pixel_decoder.level_embed", "decoder.class_embed.weight", "decoder.query_feat.weight"):
        if needed not in view:
            raise WeightsError(
                f"The file is in the {view.table.format} format, but it is no Mask2Former: it has no "
                f"{view.table.find(needed)[0][0]!r}."
            )
    decoder = _decoder(view)
    config = ModelConfig(
        method="mpformer" if decoder.get("piloted") else "mask2former",
        backbone=Component(**_backbone(view)),
        pixel_decoder=Component(**_pixel_decoder(view)),
        decoder=Component(**decoder),
    )
    return config, [f"The file does not say how many attention heads there are: {HEADS}, as published, was assumed."]


def _backbone(view: OurView) -> dict[str, Any]:
    if "backbone.patch_embed.proj.weight" in view:
        return _swin(view)
    if "backbone.stem.0.conv.weight" in view:
        return _resnet(view)
    raise WeightsError("The backbone is of no network that m2f can recognise: it knows swin and resnet.")


def _swin(view: OurView) -> dict[str, Any]:
    stages = range(view.count("backbone.stages.{}.blocks.0.norm1.weight"))
    tables = [view[f"backbone.stages.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]
    return {
        "name": "swin",
        "embed_dim": view["backbone.patch_embed.proj.weight"][0],
        "depths": [view.count(f"backbone.stages.{i}.blocks.{{}}.norm1.weight") for i in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        "drop_path": DROP_PATH,
    }


def _resnet(view: OurView) -> dict[str, Any]:
    blocks = view.count("backbone.stages.2.{}.conv1.conv.weight")
    if blocks not in _RESNET_DEPTHS:
        raise WeightsError(f"The ResNet has {blocks} blocks in its third stage; m2f knows 6 (R50) and 23 (R101).")
    norm = "sync_bn" if "backbone.stem.0.norm.num_batches_tracked" in view else "frozen_bn"
    stem = "deeplab" if "backbone.stem.2.conv.weight" in view else "basic"
    last = "backbone.stem.2.conv.weight" if stem == "deeplab" else "backbone.stem.0.conv.weight"
    widths = {"stem_channels": view[last][0], "width": view["backbone.stages.0.0.conv1.conv.weight"][0]}
    narrow = {name: width for name, width in widths.items() if width != 64}
    return {"name": "resnet", "depth": _RESNET_DEPTHS[blocks], "stem": stem, "norm": norm, **narrow}


def _pixel_decoder(view: OurView) -> dict[str, Any]:
    levels, dim = view["pixel_decoder.level_embed"]
    return {
        "name": "deformable",
        "dim": dim,
        "mask_dim": view["pixel_decoder.mask_features.weight"][0],
        "num_layers": view.count("pixel_decoder.layers.{}.norm1.weight"),
        "ffn_dim": view["pixel_decoder.layers.0.ffn.linear1.weight"][0],
        "num_heads": HEADS,
        "num_points": view["pixel_decoder.layers.0.attn.attention_weights.bias"][0] // (HEADS * levels),
    }


def _decoder(view: OurView) -> dict[str, Any]:
    queries, dim = view["decoder.query_feat.weight"]
    levels = view["decoder.level_embed.weight"][0]
    return {
        "name": "masked",
        "dim": dim,
        "num_queries": queries,
        "num_layers": view.count("decoder.layers.{}.norm1.weight"),
        "num_heads": HEADS,
        "ffn_dim": view["decoder.layers.0.ffn.linear1.weight"][0],
        **({"num_levels": levels} if levels != 3 else {}),
        **({"piloted": True} if "decoder.query_embed.weight" not in view else {}),
    }


def same_network(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two configurations hold the same tensors; training settings, batch norm's kind and heads do not count."""

    def essence(config: ModelConfig) -> list[Any]:
        ignored = {"drop_path", "pretrained", "norm", "piloted", "num_levels", "num_points"}
        parts = (config.backbone, config.pixel_decoder, config.decoder)
        options = [{k: v for k, v in part.options.items() if k not in ignored} for part in parts]
        for part in options[1:]:
            part.pop("num_heads", None)
        return [config.method == "mpformer", *(part.name for part in parts), *options]

    return essence(one) == essence(other)

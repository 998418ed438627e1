"""Inference of a network's configuration from the shapes of a foreign file."""

from __future__ import annotations

import math
from typing import Any

from ..config.schema import MOST_CLASSES, Component, ModelConfig
from ..errors import WeightsError
from .infer_vit import infer_vit
from .key_mapping import OurView

HEADS = 8  # attention heads of every published pixel decoder and decoder; shapes do not show them
DROP_PATH = 0.3  # of every published Swin (docs/methods/published-behaviour.md#swin); matters in training only
DROPOUT = 0.1  # of every published MaskFormer (docs/methods/published-behaviour.md#2-4); matters in training only
_RESNET_DEPTHS = {(2, 2): 18, (6, 2): 34, (6, 3): 50, (23, 3): 101}  # (blocks, convolutions in each), third stage
_MASK2FORMER = ("pixel_decoder.level_embed", "decoder.class_embed.weight", "decoder.query_feat.weight")
_MASKFORMER = ("pixel_decoder.top.conv.weight", "pixel_decoder.mask_features.weight")


def infer(view: OurView) -> tuple[ModelConfig, list[str]]:
    """Return the configuration of a file's network, and the assumptions that were made.

    Raises:
        WeightsError: it is no Mask2Former, MaskFormer or MP-Former with a backbone that m2f knows.
    """
    try:
        return _infer(view)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # tensors without the expected axes
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise WeightsError(f"The shapes of the tensors are those of no network that m2f knows: {reason}.") from error


def _infer(view: OurView) -> tuple[ModelConfig, list[str]]:
    if "decoder.attn_mask_probs" in view:
        return infer_vit(view), []
    if all(name in view for name in _MASKFORMER) and "decoder.level_embed.weight" in view:  # a fast Mask2Former
        method, decoder = "mask2former", _masked_decoder(view)
        pixel_decoder = {**_pyramid(view), "num_levels": decoder.get("num_levels", 3)}
    elif all(name in view for name in _MASKFORMER):
        method, pixel_decoder, decoder = "maskformer", _pyramid(view), _maskformer_decoder(view)
    else:
        _require(view, _MASK2FORMER)
        pixel_decoder, decoder = _deformable(view), _masked_decoder(view)
        method = "mpformer" if decoder.get("piloted") else "mask2former"
    config = ModelConfig(
        method=method,
        backbone=Component(**_backbone(view)),
        pixel_decoder=Component(**pixel_decoder),
        decoder=Component(**decoder),
    )
    if "num_heads" not in {**pixel_decoder, **decoder}:
        return config, []
    return config, [f"The file does not say how many attention heads there are: {HEADS}, as published, was assumed."]


def num_classes(view: OurView) -> int:
    """Return the number of classes of a file's network, without "no object".

    Raises:
        WeightsError: the file has none of the heads that m2f knows, or an impossible number of classes.
    """
    per_pixel = ("decoder.classifier.weight", "decoder.query_embed.weight")  # the two baselines of MaskFormer
    for name in ("decoder.class_embed.weight", *per_pixel):
        if name in view:
            rows = view[name][0] if view[name] else 0
            count = rows - (name not in per_pixel)
            if not 0 < count <= MOST_CLASSES:
                raise WeightsError(f"The file tells {count:,} classes apart; 1 to {MOST_CLASSES:,} are possible.")
            return count
    raise WeightsError(f"The file is in the {view.table.format} format, but it has no classifier.")


def _require(view: OurView, names: tuple[str, ...]) -> None:
    for needed in names:
        if needed not in view:
            raise WeightsError(
                f"The file is in the {view.table.format} format, but it is no Mask2Former and no MaskFormer: it has no "
                f"{view.table.find(needed)[0][0]!r}."
            )


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
    kind = (blocks, 3 if "backbone.stages.2.0.conv3.conv.weight" in view else 2)
    if kind not in _RESNET_DEPTHS:
        described = f"{blocks} blocks of {kind[1]} convolutions in its third stage"
        raise WeightsError(f"The ResNet has {described}; m2f knows R18, R34, R50 and R101.")
    norm = "sync_bn" if "backbone.stem.0.norm.num_batches_tracked" in view else "frozen_bn"
    stem = "deeplab" if "backbone.stem.2.conv.weight" in view else "basic"
    last = "backbone.stem.2.conv.weight" if stem == "deeplab" else "backbone.stem.0.conv.weight"
    widths = {"stem_channels": view[last][0], "width": view["backbone.stages.0.0.conv1.conv.weight"][0]}
    narrow = {name: width for name, width in widths.items() if width != 64}
    return {"name": "resnet", "depth": _RESNET_DEPTHS[kind], "stem": stem, "norm": norm, **narrow}


def _deformable(view: OurView) -> dict[str, Any]:
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


def _masked_decoder(view: OurView) -> dict[str, Any]:
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


def _pyramid(view: OurView) -> dict[str, Any]:
    mask_dim, dim = view["pixel_decoder.mask_features.weight"][:2]
    pyramid = {"name": "fpn", "dim": dim, "mask_dim": mask_dim}
    if "pixel_decoder.input_proj.weight" not in view:
        return pyramid
    return {
        **pyramid,
        "name": "transformer_fpn",
        "num_layers": view.count("pixel_decoder.layers.{}.norm1.weight"),
        "num_heads": HEADS,
        "ffn_dim": view["pixel_decoder.layers.0.ffn.linear1.weight"][0],
        "dropout": DROPOUT,
    }


def _maskformer_decoder(view: OurView) -> dict[str, Any]:
    if "decoder.classifier.weight" in view:
        return {"name": "per_pixel"}
    _require(view, ("decoder.query_embed.weight",))
    queries, dim = view["decoder.query_embed.weight"]
    classifies = "decoder.class_embed.weight" in view
    return {
        **({"name": "plain", "num_queries": queries} if classifies else {"name": "per_pixel_plus"}),
        "dim": dim,
        "num_layers": view.count("decoder.blocks.{}.norm1.weight"),
        "num_heads": HEADS,
        "ffn_dim": view["decoder.blocks.0.ffn.linear1.weight"][0],
        "dropout": DROPOUT,
        **({"enforce_input_proj": True} if _projects_what_fits(view, dim) else {}),
    }


def _projects_what_fits(view: OurView, dim: int) -> bool:
    projection = "decoder.input_proj.weight"
    return projection in view and view[projection][1] == dim


def same_network(one: ModelConfig, other: ModelConfig) -> bool:
    """Return True if two configurations have the same tensors.

    Training settings, the kind of batch norm and the number of heads do not count.
    """

    def essence(config: ModelConfig) -> list[Any]:
        ignored = {
            "drop_path",
            "pretrained",
            "norm",
            "piloted",
            "num_levels",
            "num_points",
            "dropout",
            "deep_supervision",
            "enforce_input_proj",
            "frozen",
            "anneal",
            "anneal_power",
            "masked_prediction",
        }
        parts = (config.backbone, config.pixel_decoder, config.decoder)
        options = [{k: v for k, v in part.options.items() if k not in ignored} for part in parts]
        for part in options:
            if "model" in part:
                part["model"] = str(part["model"]).split(".")[0]  # timm's names end with that of the weights
        for part in options[1:]:
            part.pop("num_heads", None)
        return [config.method == "mpformer", *(part.name for part in parts), *options]

    return essence(one) == essence(other)

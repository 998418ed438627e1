"""Reading of Hugging Face transformers folders: config.json and preprocessor_config.json become a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.schema import Component, InputConfig, ModelConfig, ResizeConfig, SlideConfig
from ..errors import WeightsError
from ..runtime import documents
from . import key_mapping as names
from . import readers as containers
from .checkpoint import Checkpoint
from .hub import WEIGHT_FILES
from .huggingface_vit import read_vit
from .key_tables import HUGGINGFACE
from .vit_tables import VIT_TABLES

# Defaults of transformers (release 5.23), which its config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "feature_size": 256,
    "mask_feature_size": 256,
    "hidden_dim": 256,
    "encoder_feedforward_dim": 1024,
    "encoder_layers": 6,
    "decoder_layers": 10,
    "num_attention_heads": 8,
    "dim_feedforward": 2048,
    "num_queries": 100,
}
_MASKFORMER_DEFAULTS = {"fpn_feature_size": 256, "mask_feature_size": 256}
_DETR_DEFAULTS: dict[str, Any] = {
    "d_model": 256,
    "num_queries": 100,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "dropout": 0.1,
}
_SWIN_DEFAULTS: dict[str, Any] = {
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "drop_path_rate": 0.1,
}
_RESNET_DEFAULTS: dict[str, Any] = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}
# Required values of settings that vary in transformers, but in no published model.
FIXED = {
    "activation_function": "relu",
    "pre_norm": False,
    "common_stride": 4,
    "enforce_input_projection": False,
    "feature_strides": [4, 8, 16, 32],
}
DETR_FIXED = {"model_type": "detr", "activation_function": "relu"}
_BACKBONES = {  # meaning of a config.json without a backbone_config
    "mask2former": {"model_type": "swin", "depths": [2, 2, 18, 2], "drop_path_rate": 0.3},
    "maskformer": {
        "model_type": "swin",
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
        "drop_path_rate": 0.3,
    },
}
SWIN_FIXED = {
    "patch_size": 4,
    "num_channels": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
RESNET_FIXED = {
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "num_channels": 3,
}
RESNETS = {  # kind of block, blocks of the four stages
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
}
EXPANSION = {"basic": 1, "bottleneck": 4}  # output channels of a block, in widths
# Errors from values of the wrong kind. The ValidationError of pydantic is a ValueError.
_SENSELESS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
IMAGENET = InputConfig(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def read_folder(folder: Path, source: str) -> Checkpoint:
    """Read a folder with config.json and weights.

    Raises:
        WeightsError: the folder has no weights, a file is damaged, or m2f does not have the network.
    """
    config = _read_json(folder / "config.json")
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise WeightsError(f"{folder} has a config.json but no weights: none of {', '.join(WEIGHT_FILES)}.")
    model = model_config(config, source)
    container = containers.read(weights)
    tables = (HUGGINGFACE, *VIT_TABLES)
    tensors, notes = names.unwrapped(container.tensors, [mark for table in tables for mark in table.marks])
    table = next((table for table in VIT_TABLES if table.recognises(tensors)), HUGGINGFACE)
    checkpoint = Checkpoint(source, table.format, tensors, model, notes=[*container.notes, *notes])
    try:
        checkpoint.class_names = _class_names(config, checkpoint.num_classes)
    except _SENSELESS as error:
        raise WeightsError(f"The classes in {folder / 'config.json'} make no sense: {_reason(error)}.") from error
    _read_processor(folder / "preprocessor_config.json", checkpoint)
    return checkpoint


def model_config(config: Mapping[str, Any], source: str) -> ModelConfig:
    """Return the network that a config.json describes.

    Raises:
        WeightsError: it is no Mask2Former, MaskFormer or EoMT, or a variant that m2f does not have.
    """
    try:
        return _model_config(config, source)
    except _SENSELESS as error:
        raise WeightsError(f"The config.json of {source} makes no sense: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")


def _model_config(config: Mapping[str, Any], source: str) -> ModelConfig:
    kind = config.get("model_type")
    if kind == "maskformer":
        return _maskformer(config, source)
    if kind in ("eomt", "eomt_dinov3"):
        return read_vit(config, source)
    if kind != "mask2former":
        known = "'mask2former', 'maskformer', 'eomt' and 'eomt_dinov3'"
        raise WeightsError(f"{source} is a transformers model of the kind {kind!r}; m2f reads {known}.")
    _refuse_variants(config, FIXED, source)
    number = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    return ModelConfig(
        method="mask2former",
        backbone=_backbone(config, source),
        pixel_decoder=Component(
            name="deformable",
            dim=number["feature_size"],
            mask_dim=number["mask_feature_size"],
            num_layers=number["encoder_layers"],
            ffn_dim=number["encoder_feedforward_dim"],
            num_heads=number["num_attention_heads"],
            num_points=4,
        ),
        decoder=Component(
            name="masked",
            dim=number["hidden_dim"],
            num_queries=number["num_queries"],
            # transformers also counts the prediction from the raw queries
            num_layers=number["decoder_layers"] - 1,
            num_heads=number["num_attention_heads"],
            ffn_dim=number["dim_feedforward"],
        ),
    )


def _maskformer(config: Mapping[str, Any], source: str) -> ModelConfig:
    pyramid = {key: config.get(key, default) for key, default in _MASKFORMER_DEFAULTS.items()}
    detr = config.get("decoder_config") or {}
    _refuse_variants(detr, DETR_FIXED, source)
    number = {key: detr.get(key, default) for key, default in _DETR_DEFAULTS.items()}
    return ModelConfig(
        method="maskformer",
        backbone=_backbone(config, source),
        pixel_decoder=Component(name="fpn", dim=pyramid["fpn_feature_size"], mask_dim=pyramid["mask_feature_size"]),
        decoder=Component(
            name="plain",
            dim=number["d_model"],
            num_queries=number["num_queries"],
            num_layers=number["decoder_layers"],
            num_heads=number["decoder_attention_heads"],
            ffn_dim=number["decoder_ffn_dim"],
            dropout=number["dropout"],
        ),
    )


def _backbone(config: Mapping[str, Any], source: str) -> Component:
    if config.get("use_timm_backbone") or (config.get("backbone") and not config.get("backbone_config")):
        name = config.get("backbone")
        raise WeightsError(f"{source} has the backbone {name!r} of another library; m2f reads swin and resnet.")
    inner = config.get("backbone_config") or _BACKBONES[config["model_type"]]
    kind = inner.get("model_type")
    if kind in ("swin", "maskformer-swin"):
        _refuse_variants(inner, SWIN_FIXED, source)
        value = {key: inner.get(key, default) for key, default in _SWIN_DEFAULTS.items()}
        return Component(name="swin", drop_path=value.pop("drop_path_rate"), **value)
    if kind == "resnet":
        return _resnet(inner, source)
    raise WeightsError(f"{source} has a backbone of the kind {kind!r}; of transformers' m2f reads 'swin' and 'resnet'.")


def _resnet(inner: Mapping[str, Any], source: str) -> Component:
    _refuse_variants(inner, RESNET_FIXED, source)
    value = {key: inner.get(key, default) for key, default in _RESNET_DEFAULTS.items()}
    kind = (value["layer_type"], list(value["depths"]))
    depth = next((depth for depth, known in RESNETS.items() if known == kind), None)
    expansion = EXPANSION.get(value["layer_type"], 1)
    width = value["hidden_sizes"][0] // expansion
    if depth is None or list(value["hidden_sizes"]) != [expansion * width * 2**i for i in range(4)]:
        described = f"{kind[0]} blocks, depths {value['depths']} and widths {value['hidden_sizes']}"
        raise WeightsError(f"{source} has a ResNet of {described}, none of R18, R34, R50 and R101.")
    widths = {"stem_channels": value["embedding_size"], "width": width}
    narrow = {name: number for name, number in widths.items() if number != 64}
    return Component(name="resnet", depth=depth, stem="basic", norm="bn", **narrow)


def _refuse_variants(config: Mapping[str, Any], required: Mapping[str, Any], source: str) -> None:
    for key, wanted in required.items():
        if config.get(key, wanted) != wanted:
            raise WeightsError(f"{source} has {key} = {config[key]!r}; m2f has networks with {wanted!r} only.")


def _class_names(config: Mapping[str, Any], count: int) -> list[str] | None:
    table = config.get("id2label") or {}
    names_of = {int(number): str(name) for number, name in table.items()}
    return [names_of[i] for i in range(count)] if set(names_of) == set(range(count)) else None


def _read_processor(path: Path, checkpoint: Checkpoint) -> None:
    if not path.is_file():
        checkpoint.notes.append("There is no preprocessor_config.json: ImageNet normalisation was assumed.")
        checkpoint.input = IMAGENET
        return
    processor = _read_json(path)
    try:
        checkpoint.input = _input(processor)
        checkpoint.resize, checkpoint.slide = _resize(processor), _slide(processor)
    except _SENSELESS as error:
        raise WeightsError(f"{path} makes no sense: {_reason(error)}.") from error


def _input(processor: Mapping[str, Any]) -> InputConfig:
    """Return the normalisation. That of transformers applies to rescaled pixels: (x · rescale - mean) / std."""
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    normalise = processor.get("do_normalize", True)
    mean = processor.get("image_mean", [0.485, 0.456, 0.406]) if normalise else [0.0] * 3
    std = processor.get("image_std", [0.229, 0.224, 0.225]) if normalise else [1.0] * 3
    # rounded, because 0.485 would become 123.67499999999998
    mean, std = ([round(v / scale, 6) for v in values] for values in (mean, std))
    return InputConfig(mean=mean, std=std)


def _resize(processor: Mapping[str, Any]) -> ResizeConfig:
    if not processor.get("do_resize", True):
        return ResizeConfig()
    size = processor.get("size", {"shortest_edge": 800, "longest_edge": 1333})
    if isinstance(size, int):
        return ResizeConfig(short_edge=size, max_edge=processor.get("max_size"))
    if "height" in size:
        return ResizeConfig(fixed=(size["height"], size["width"]))
    short, longest = size["shortest_edge"], size.get("longest_edge")
    if "do_split_image" not in processor:
        return ResizeConfig(short_edge=short, max_edge=longest)
    if processor.get("do_pad"):  # to a square, with black, as plain ViTs are tested
        return ResizeConfig(fit=longest or short, rounding="half_even")
    return ResizeConfig(short_edge=short, max_edge=longest, rounding="half_even")


def _slide(processor: Mapping[str, Any]) -> SlideConfig | None:
    """Return the windows of a processor that cuts images into them."""
    side = processor["size"]["shortest_edge"] if processor.get("do_split_image") else None
    return None if side is None else SlideConfig(crop=(side, side), even=True)


def _read_json(path: Path) -> dict[str, Any]:
    tree = documents.read_json(path, error=WeightsError)
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} should hold keys and values, not a {type(tree).__name__}.")
    return tree

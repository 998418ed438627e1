"""Writing of Hugging Face transformers folders: a configuration becomes config.json and preprocessor_config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import Component, Config, ModelConfig
from ..errors import ExportError
from ..runtime.locks import staged
from ..structures.categories import Categories
from . import key_mapping as names
from .checkpoint import write_safetensors
from .huggingface import DETR_FIXED, EXPANSION, FIXED, RESNET_FIXED, RESNETS, SWIN_FIXED
from .huggingface_vit import to_vit_json, to_vit_processor_json, to_vit_tensors
from .key_tables import HUGGINGFACE


def write_folder(folder: str | Path, state: Mapping[str, Tensor], config: Config, categories: Categories) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json, which `from_pretrained` of transformers loads.

    No key is missing or unexpected. The folder appears complete or not at all.

    Raises:
        ExportError: transformers has no such network, or the folder exists already.
        ConfigError: another process writes the folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists already.", hint="Choose another folder, or remove it first.")
    tree = to_config_json(config.model, categories)
    tensors = to_tensors(state, config.model)
    with staged(folder, "An export") as part:
        write_safetensors(part / "model.safetensors", tensors, {"format": "pt"})
        processor = to_processor_json(config, categories)
        for name, record in (("config.json", tree), ("preprocessor_config.json", processor)):
            (part / name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(folder)
    return folder


def to_tensors(state: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return m2f's weights under the names of transformers, with the additional tensors that it expects.

    The queries of MP-Former have no learned positions. Transformers always adds positions, so they are zeros.

    Raises:
        ExportError: transformers has no name for one of the tensors.
    """
    if model.decoder.name == "eomt":
        return to_vit_tensors(state, masked=model.decoder.options.get("masked_prediction", False))
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.label_embed.")}
    if "decoder.query_embed.weight" not in kept:
        kept["decoder.query_embed.weight"] = torch.zeros_like(kept["decoder.query_feat.weight"], device="cpu")
    projection = kept.get("decoder.input_proj.weight")
    if projection is not None and projection.shape[0] == projection.shape[1]:
        raise ExportError("transformers' MaskFormer projects its level only where widths differ; here they are equal.")
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in names.from_m2f(HUGGINGFACE, kept).items()
    }
    classes = tensors["class_predictor.bias"].shape[0]
    tensors["criterion.empty_weight"] = torch.tensor([1.0] * (classes - 1) + [0.1])
    if model.backbone.name == "swin":
        _add_swin_extras(tensors, model.method)
    for name in [name for name in tensors if name.endswith(".running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        tensors.setdefault(counter, torch.zeros((), dtype=torch.long))
    return tensors


def _add_swin_extras(tensors: dict[str, Tensor], method: str) -> None:
    """Add the classifier's last norm, which transformers creates and never uses, and MaskFormer's constants."""
    encoder = "model.pixel_level_module.encoder."
    last, prefix = ("3", "model.") if method == "maskformer" else ("stage4", "swin.")
    norm = tensors[f"{encoder}hidden_states_norms.{last}.weight"]
    tensors[f"{encoder}{prefix}layernorm.weight"] = torch.ones_like(norm)
    tensors[f"{encoder}{prefix}layernorm.bias"] = torch.zeros_like(norm)
    if method == "maskformer":
        for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
            window = (math.isqrt(len(tensors[name])) + 1) // 2
            tensors[name.replace("bias_table", "index")] = _relative_position_index(window)


def _relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for each pair of tokens (docs/methods/published-behaviour.md#3-3)."""
    rows, columns = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    down, right = (positions[:, None] - positions + window - 1 for positions in (rows, columns))
    return down * (2 * window - 1) + right


def to_config_json(model: ModelConfig, categories: Categories) -> dict[str, Any]:
    """Return the config.json of an m2f network.

    Raises:
        ExportError: transformers has no such network.
    """
    labels = {str(i): category.name for i, category in enumerate(categories)}
    shared = {
        "no_object_weight": 0.1,
        "id2label": labels,
        "label2id": {name: int(number) for number, name in labels.items()},
        "torch_dtype": "float32",
    }
    parts = (model.pixel_decoder.name, model.decoder.name)
    if parts == ("deformable", "masked"):
        return {**_to_mask2former_json(model), **shared}
    if parts == ("fpn", "plain"):
        return {**_to_maskformer_json(model), **shared}
    if parts == ("tokens", "eomt"):
        return {**to_vit_json(model), **shared}
    raise ExportError(f"transformers has no network with {' and '.join(parts)} decoders.")


def _to_mask2former_json(model: ModelConfig) -> dict[str, Any]:
    pixel, decoder = model.pixel_decoder.options, model.decoder.options
    if pixel["num_heads"] != decoder["num_heads"] or pixel["num_points"] != 4 or decoder.get("num_levels", 3) != 3:
        raise ExportError("transformers' Mask2Former has one number of heads, 4 points and 3 levels; this one differs.")
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _to_backbone_json(model.backbone),
        "feature_size": pixel["dim"],
        "mask_feature_size": pixel["mask_dim"],
        "hidden_dim": decoder["dim"],
        "encoder_feedforward_dim": pixel["ffn_dim"],
        "encoder_layers": pixel["num_layers"],
        "decoder_layers": decoder["num_layers"] + 1,
        "num_attention_heads": decoder["num_heads"],
        "dim_feedforward": decoder["ffn_dim"],
        "num_queries": decoder["num_queries"],
        **FIXED,
    }


def _to_maskformer_json(model: ModelConfig) -> dict[str, Any]:
    pixel, decoder = model.pixel_decoder.options, model.decoder.options
    if decoder.get("pre_norm"):
        raise ExportError("transformers' MaskFormer normalises after each part; this one does before.")
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _to_backbone_json(model.backbone),
        "fpn_feature_size": pixel["dim"],
        "mask_feature_size": pixel["mask_dim"],
        "decoder_config": {
            **DETR_FIXED,
            "d_model": decoder["dim"],
            "num_queries": decoder["num_queries"],
            "decoder_layers": decoder["num_layers"],
            "decoder_attention_heads": decoder["num_heads"],
            "decoder_ffn_dim": decoder["ffn_dim"],
            "dropout": decoder["dropout"],
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "decoder_layerdrop": 0.0,
        },
    }


def _to_backbone_json(backbone: Component) -> dict[str, Any]:
    options = backbone.options
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if backbone.name == "swin":
        keys = {key: options[key] for key in ("embed_dim", "depths", "num_heads", "window_size")}
        return {"model_type": "swin", **keys, "drop_path_rate": options["drop_path"], **SWIN_FIXED, **stages}
    if backbone.name == "resnet" and options["stem"] == "basic":
        block, depths = RESNETS[options["depth"]]
        widths = [EXPANSION[block] * options.get("width", 64) * 2**i for i in range(4)]
        sizes = {
            "embedding_size": options.get("stem_channels", 64),
            "hidden_sizes": widths,
            "depths": depths,
            "layer_type": block,
        }
        return {"model_type": "resnet", **sizes, **RESNET_FIXED, **stages}
    raise ExportError(f"transformers cannot have this backbone: {backbone.name} {options}.")


def to_processor_json(config: Config, categories: Categories) -> dict[str, Any]:
    """Return the preprocessor_config.json for the configuration's input and test sizes."""
    resize, is_maskformer = config.test.resize, config.model.method == "maskformer"
    if resize.fixed:
        size = {"height": resize.fixed[0], "width": resize.fixed[1]}
    else:
        size = {"shortest_edge": resize.short_edge or 800, "longest_edge": resize.max_edge or 1333}
    own = to_vit_processor_json(config.test) if config.model.decoder.name == "eomt" else {}
    return {
        "image_processor_type": f"{'Mask' if is_maskformer else 'Mask2'}FormerImageProcessor",
        "do_resize": bool(resize.fixed or resize.short_edge),
        "size": size,
        "resample": 2,
        "size_divisor": max(config.test.size_divisor, 1),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(v / 255, 6) for v in config.input.mean],
        "image_std": [round(v / 255, 6) for v in config.input.std],
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": len(categories),
        **own,
    }

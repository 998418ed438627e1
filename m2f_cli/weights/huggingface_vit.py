"""config.json of transformers' EoMT over DINOv2 and DINOv3, both ways (docs/methods/plain-vit.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.schema import ModelConfig, TestConfig
from ..errors import ExportError, WeightsError
from . import key_mapping as names
from .infer_vit import PATCH, SIZES, eomt
from .vit_tables import HF_EOMT, HF_EOMT_DINOV3, HF_EOMT_GATED

# Defaults of transformers (release 5.24), which its config.json leaves out.
_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 640,
    "num_blocks": 4,
    "num_queries": 200,
}
# Settings that vary in transformers, but in no published model: (default, required value).
_FIXED = {
    "hidden_act": ("gelu", "gelu"),
    "patch_size": (PATCH, PATCH),
    "num_channels": (3, 3),
    "num_register_tokens": (4, 4),
    "num_upscale_blocks": (2, 2),
}
_FIXED_OF = {
    "eomt": {"layer_norm_eps": (1e-6, 1e-6)},
    "eomt_dinov3": {
        "layer_norm_eps": (1e-6, 1e-5),
        "use_gated_mlp": (False, False),
        "query_bias": (True, True),
        "key_bias": (False, False),
        "value_bias": (True, True),
        "proj_bias": (True, True),
        "mlp_bias": (True, True),
    },
}
_GATED_RATIO = 2.66667 * 2  # of both halves together, as timm states it
_ROPE = {"rope_theta": 100.0, "rope_type": "default"}
_DINOV2, _DINOV3 = "vit_{}_patch14_reg4_dinov2", "vit_{}_patch16_dinov3_qkvb"
Size = tuple[int, int, int]  # width, blocks and attention heads


def read_vit(config: Mapping[str, Any], source: str) -> ModelConfig:
    """Return the network of a config.json.

    Raises:
        WeightsError: it is a variant that m2f does not have.
    """
    kind = config["model_type"]
    for key, (default, wanted) in {**_FIXED, **_FIXED_OF[kind]}.items():
        if config.get(key, default) != wanted:
            found = config.get(key, default)
            raise WeightsError(f"{source} has {key} = {found!r}; m2f has networks of this kind with {wanted!r} only.")
    theta = (config.get("rope_parameters") or _ROPE)["rope_theta"]
    if theta != _ROPE["rope_theta"]:
        raise WeightsError(f"{source} has rope_theta = {theta!r}; m2f has networks with {_ROPE['rope_theta']} only.")
    value = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    dim, depth, heads = size = value["hidden_size"], value["num_hidden_layers"], value["num_attention_heads"]
    gated = kind == "eomt" and bool(config.get("use_swiglu_ffn"))
    if kind == "eomt":
        hidden = _hidden(dim, config.get("mlp_ratio", 4), gated)
    else:
        hidden = config.get("intermediate_size", 4096)
    name = _named(_DINOV2 if kind == "eomt" else _DINOV3, size, gated=gated)
    usual = int(dim * _GATED_RATIO) if gated else 4 * dim
    options: dict[str, Any] = {} if hidden == usual else {"mlp_ratio": (hidden + 0.5) / dim}  # timm rounds down
    if SIZES.get(dim, ())[1:] != (depth, heads):
        options |= {"embed_dim": dim, "num_heads": heads}
    return eomt(name, value["image_size"], depth, value["num_blocks"], value["num_queries"], **options)


def _named(pattern: str, size: Size, *, gated: bool) -> str:
    """Return timm's name of a ViT of this size, or one that options can give it."""
    name, *others = SIZES.get(size[0], ("",))
    if name == "" or tuple(others) != size[1:] or gated != (name == "giant"):
        name = "giant" if gated else "small"
    return pattern.format(name)


# --- and back ---------------------------------------------------------------------------------------------------------


def to_vit_json(model: ModelConfig) -> dict[str, Any]:
    """Return the config.json of an EoMT, without its classes.

    Raises:
        ExportError: transformers has no such network.
    """
    backbone, decoder = model.backbone.options, model.decoder.options
    name, img_size = str(backbone["model"]).split(".")[0], backbone["img_size"]
    known = {pattern.format(SIZES[dim][0]): dim for pattern in (_DINOV2, _DINOV3) for dim in SIZES}
    if name not in known:
        raise ExportError(f"transformers' EoMT has a DINOv2 or DINOv3 with registers, not the ViT {name}.")
    if not isinstance(img_size, int):
        raise ExportError(f"transformers' EoMT takes squares; here img_size is {img_size}.")
    dim, heads = backbone.get("embed_dim", known[name]), backbone.get("num_heads", SIZES[known[name]][2])
    shared = {
        "hidden_size": dim,
        "num_hidden_layers": decoder["first_block"] + decoder["num_blocks"],
        "num_attention_heads": heads,
        "image_size": img_size,
        "num_blocks": decoder["num_blocks"],
        "num_queries": decoder["num_queries"],
        **{key: wanted for key, (_, wanted) in _FIXED.items()},
    }
    gated = name == _DINOV2.format("giant")
    hidden = int(dim * backbone.get("mlp_ratio", _GATED_RATIO if gated else 4))
    if "dinov3" in name:
        return {**_kind("eomt_dinov3"), **shared, "intermediate_size": hidden, "rope_parameters": _ROPE}
    ratio = next((ratio for ratio in range(1, 65) if _hidden(dim, ratio, gated) == hidden), None)
    if ratio is None:
        raise ExportError(f"transformers' EoMT has a whole mlp_ratio; here {hidden} channels follow {dim}.")
    return {**_kind("eomt"), **shared, "mlp_ratio": ratio, "use_swiglu_ffn": gated}


def _hidden(dim: int, ratio: float, gated: bool) -> int:
    """Return the width of transformers' feed-forward networks, of gated ones that of both halves together."""
    hidden = int(dim * ratio)
    return 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8) if gated else hidden


def _kind(kind: str) -> dict[str, Any]:
    architecture = "EomtDinov3ForUniversalSegmentation" if "dinov3" in kind else "EomtForUniversalSegmentation"
    fixed = {key: wanted for key, (_, wanted) in _FIXED_OF[kind].items()}
    return {"architectures": [architecture], "model_type": kind, **fixed}


def to_vit_processor_json(test: TestConfig) -> dict[str, Any]:
    """Return what the preprocessor_config.json of an EoMT has of its own: how images are resized, and then padded to a
    square or cut into windows."""
    side = test.resize.fit
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side or test.resize.short_edge or 640, "longest_edge": side or test.resize.max_edge},
        "do_pad": side is not None,
        "do_split_image": test.slide is not None,
    }


def to_vit_tensors(state: Mapping[str, Tensor], *, masked: bool) -> dict[str, Tensor]:
    """Return the weights of an EoMT under the names of transformers, with the class weights of its loss.

    Args:
        masked: whether there are masks outside training. transformers decides that by their probabilities, so without
            them all probabilities are 0, also of a model whose training ended before its masks did.
    """
    gate, rest = (state[f"decoder.vit.blocks.{_first(state)}.mlp.{layer}.weight"] for layer in ("fc1", "fc2"))
    table = HF_EOMT_GATED if gate.shape[0] == 2 * rest.shape[1] else HF_EOMT
    table = table if "backbone.net.pos_embed" in state else HF_EOMT_DINOV3
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in names.from_m2f(table, state).items()
    }
    if not masked:
        tensors["attn_mask_probs"].zero_()
    classes = tensors["class_predictor.bias"].shape[0]
    tensors["criterion.empty_weight"] = torch.tensor([1.0] * (classes - 1) + [0.1])
    return tensors


def _first(state: Mapping[str, Tensor]) -> str:
    start = "decoder.vit.blocks."
    return next(name.removeprefix(start).split(".")[0] for name in state if name.startswith(start))

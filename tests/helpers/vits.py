"""Plain ViTs for tests: golden networks of EoMT and PMT, and tiny ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from helpers.parts import weights_of
from torch import Tensor, nn

from m2f_cli.config.schema import ModelConfig
from m2f_cli.model import MaskClassifier, build
from m2f_cli.weights.key_mapping import Table, to_m2f
from m2f_cli.weights.key_tables import TABLES

DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"
TINY = {"embed_dim": 36, "num_heads": 3, "depth": 4}  # options of timm


def eomt_config(model: str = DINOV2, img_size: Any = 64, **changes: Any) -> ModelConfig:
    """Queries in the last three of four blocks. `changes` are options of the ViT, or of the decoder."""
    decoder = {"num_queries": 12, "first_block": 1, "num_blocks": 3}
    own = ("anneal", "anneal_power", "masked_prediction")
    decoder |= {name: changes.pop(name) for name in list(changes) if name in decoder or name in own}
    vit = {**TINY, **changes}
    of_decoder = {name: value for name, value in vit.items() if name not in ("depth", "levels")}
    return ModelConfig.model_validate(
        {
            "method": "eomt",
            "backbone": {"name": "vit_tokens", "model": model, "img_size": img_size, "levels": [0], **vit},
            "pixel_decoder": {"name": "tokens"},
            "decoder": {"name": "eomt", "model": model, **decoder, **of_decoder},
        }
    )


def pmt_config(img_size: Any = 64, **changes: Any) -> ModelConfig:
    levels = [0, 1, 2, 3]
    vit = {"model": DINOV3, "img_size": img_size, "levels": levels, "norm": True, "frozen": True, **TINY, **changes}
    return ModelConfig.model_validate(
        {
            "method": "pmt",
            "backbone": {"name": "vit_tokens", **vit},
            "pixel_decoder": {"name": "lateral", "num_levels": len(levels)},
            "decoder": {"name": "pmt", "num_queries": 12, "num_blocks": 3, "num_heads": 3, "ffn_dim": 72},
        }
    )


def table_of(tensors: Mapping[str, Tensor]) -> Table:
    return next(table for table in TABLES.values() if table.recognises(tensors))


def golden_vit(file) -> MaskClassifier:
    """The network of a file v01 to v03 with its weights."""
    settings = file.info["config"]
    mlp, size = settings.get("mlp", settings.get("encoder_mlp")), settings["img_size"]
    options = {"embed_dim": settings["embed_dim"], "num_heads": settings["heads"], "mlp_ratio": (mlp + 0.5) / 36}
    if file.name.startswith("v03"):
        config = pmt_config(size, **options)
    else:
        config = eomt_config(DINOV3 if settings["kind"] == "dinov3" else DINOV2, size, **options)
    model = build(config, settings["num_classes"])
    weights = weights_of(file.tensors)
    model.load_state_dict(to_m2f(table_of(weights), weights, shapes_of(model)), strict=True)
    return model.eval()


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def images_of(file) -> Tensor:
    """Normalised images, as the published code makes them of bytes."""
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (file.tensors["in/images"] / 255 - mean) / std

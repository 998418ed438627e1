"""Help for tests: golden weights into parts of the network, whole golden networks, and tiny networks."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from m2f_cli.config.schema import Component, ModelConfig
from m2f_cli.model import build
from m2f_cli.weights.infer_config import infer
from m2f_cli.weights.key_mapping import OurView, from_m2f, to_m2f
from m2f_cli.weights.key_tables import DETECTRON2

PREFIXES = {  # of a part: in the published layout, in ours
    "backbone": ("backbone.", "backbone."),
    "pixel_decoder": ("sem_seg_head.pixel_decoder.", "pixel_decoder."),
    "decoder": ("sem_seg_head.predictor.", "decoder."),
    "model": ("", ""),
}


def weights_of(tensors: dict[str, torch.Tensor], prefix: str = "weights/") -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_published(part: nn.Module, kind: str, file) -> nn.Module:
    """Put the weights of a file into a part of our network, through the name table.

    What a reduced file says to have left out comes after all that it compares; such weights stay as they are.
    """
    theirs, ours = PREFIXES[kind]
    weights = published_weights(part, kind, file)
    shapes = {ours + name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    state = to_m2f(DETECTRON2, {theirs + name: tensor for name, tensor in weights.items()}, shapes)
    part.load_state_dict({name[len(ours) :]: tensor for name, tensor in state.items()}, strict=True)
    return part.eval()


def published_weights(part: nn.Module, kind: str, file) -> dict[str, torch.Tensor]:
    """The weights of a file under the published names; those that it left out are the part's own."""
    weights, left_out = weights_of(file.tensors), tuple(file.info.get("left_out", ()))
    if not left_out:
        return weights
    theirs, ours = PREFIXES[kind]
    own = from_m2f(DETECTRON2, {ours + name: tensor for name, tensor in part.state_dict().items()})
    own = {name[len(theirs) :]: tensor for name, tensor in own.items()}
    return weights | {name: tensor for name, tensor in own.items() if name.startswith(left_out)}


class Given(nn.Module):
    """A backbone that gives the features of a file whatever it is shown."""

    def __init__(self, features: dict[int, torch.Tensor]):
        super().__init__()
        self.features = features

    def forward(self, images_BCHW: torch.Tensor) -> dict[int, torch.Tensor]:
        assert len(images_BCHW) == len(self.features[4])
        return self.features


STRIDES = (4, 8, 16, 32)  # of res2 to res5


def features_of(tensors: dict[str, torch.Tensor], prefix: str) -> dict[int, torch.Tensor]:
    """res2 to res5 by stride, those that are there."""
    names = {stride: f"{prefix}res{i}" for i, stride in enumerate(STRIDES, start=2)}
    return {stride: tensors[name] for stride, name in names.items() if name in tensors}


def levels_of(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The levels of a pixel decoder that a file gives to a decoder, in their order."""
    names = [name for name in tensors if name.startswith("in/multi_scale.")]
    return [tensors[f"in/multi_scale.{i}"] for i in range(len(names))]


def full_model_config(file) -> ModelConfig:
    """The network of a full model (06, 08e): what the json tells, else what the weights' shapes tell."""
    settings, weights = file.info["config"], weights_of(file.tensors)

    def told(key: str, otherwise: Any = None) -> Any:
        return settings[key] if otherwise is None else settings.get(key, otherwise)

    def shape(name: str) -> torch.Size:
        return weights[f"sem_seg_head.{name}"].shape

    def count(pattern: str) -> int:
        return len({match[1] for match in map(re.compile(pattern).match, weights) if match})

    if "MODEL.SWIN.EMBED_DIM" in settings:
        names = {"embed_dim": "EMBED_DIM", "depths": "DEPTHS", "num_heads": "NUM_HEADS", "window_size": "WINDOW_SIZE"}
        swin = {ours: settings[f"MODEL.SWIN.{theirs}"] for ours, theirs in names.items()}
        backbone = Component(name="swin", drop_path=0.3, **swin)
    else:
        backbone = infer(OurView(DETECTRON2, weights))[0].backbone
    heads = told("MODEL.MASK_FORMER.NHEADS")
    pixel, encoder = "pixel_decoder.", "pixel_decoder.transformer.encoder.layers.0."
    dims = {
        "dim": told("MODEL.SEM_SEG_HEAD.CONVS_DIM", shape(f"{pixel}mask_features.weight")[1]),
        "mask_dim": told("MODEL.SEM_SEG_HEAD.MASK_DIM", shape(f"{pixel}mask_features.weight")[0]),
    }
    layers = count(r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.")
    layers = layers and told("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", layers)
    decoder = {
        "dim": told("MODEL.MASK_FORMER.HIDDEN_DIM"),
        "num_queries": told("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        "num_heads": heads,
        "ffn_dim": told("MODEL.MASK_FORMER.DIM_FEEDFORWARD"),
    }
    if f"sem_seg_head.{encoder}self_attn.sampling_offsets.bias" in weights:
        levels = shape(f"{pixel}transformer.level_embed")[0]
        points = shape(f"{encoder}self_attn.attention_weights.bias")[0] // (heads * levels)
        ffn = file.info.get("pixel_decoder_dim_feedforward", shape(f"{encoder}linear1.weight")[0])
        return ModelConfig(
            method="mask2former",
            backbone=backbone,
            pixel_decoder=Component(
                name="deformable", num_layers=layers, ffn_dim=ffn, num_heads=heads, num_points=points, **dims
            ),
            decoder=Component(name="masked", num_layers=told("MODEL.MASK_FORMER.DEC_LAYERS") - 1, **decoder),
        )
    fpn = Component(name="fpn", **dims)
    if layers:
        ffn = shape(f"{encoder}linear1.weight")[0]
        fpn = Component(name="transformer_fpn", num_layers=layers, num_heads=heads, ffn_dim=ffn, dropout=0.1, **dims)
    projected = "sem_seg_head.predictor.input_proj.weight" in weights
    return ModelConfig(
        method="maskformer",
        backbone=backbone,
        pixel_decoder=fpn,
        decoder=Component(
            name="plain",
            num_layers=told("MODEL.MASK_FORMER.DEC_LAYERS"),
            dropout=0.1,
            enforce_input_proj=projected,
            **decoder,
        ),
    )


def full_model(file) -> nn.Module:
    """The network of a file of a full model (06, 08e) with its weights."""
    model = build(full_model_config(file), file.info["config"]["MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
    load_published(model, "model", file)
    if any("backbone.".startswith(start) for start in file.info.get("left_out", ())):
        model.backbone = Given(features_of(file.tensors, "mid/backbone."))
    return model.eval()


def whole_batch(file) -> torch.Tensor:
    """All images of a full model's file, normalised and padded as its batch is."""
    mean, std = (torch.tensor(file.info[name])[:, None, None] for name in ("pixel_mean", "pixel_std"))
    height, width = file.tensors["mid/padded_normalised_batch"].shape[-2:]
    images = [(file.tensors[f"in/image.{i}"] - mean) / std for i in range(len(file.info["image_sizes"]))]
    return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])


def tiny_config(**backbone) -> ModelConfig:
    """A Mask2Former small enough to run hundreds of times."""
    swin = {
        "name": "swin",
        "embed_dim": 16,
        "depths": [2, 1, 2, 1],
        "num_heads": [2, 2, 4, 4],
        "window_size": 7,
        "drop_path": 0.3,
    }
    return ModelConfig(
        method="mask2former",
        backbone=backbone or swin,
        pixel_decoder={
            "name": "deformable",
            "dim": 64,
            "mask_dim": 32,
            "num_layers": 2,
            "ffn_dim": 64,
            "num_heads": 4,
            "num_points": 4,
        },
        decoder={"name": "masked", "dim": 64, "num_queries": 12, "num_layers": 3, "num_heads": 4, "ffn_dim": 64},
    )


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give all that is in a checkpoint a value that matters (fresh networks sample at whole pixels, weigh evenly …).

    Buffers that are not in one are constants, such as the frequencies of rotary positions."""
    generator = torch.Generator().manual_seed(seed)
    stored = model.state_dict()
    for name, parameter in [*model.named_parameters(), *(each for each in model.named_buffers() if each[0] in stored)]:
        with torch.no_grad():
            if name.endswith("running_var"):
                parameter.uniform_(0.5, 2.0, generator=generator)
            elif parameter.dim() < 2 and name.endswith("weight"):
                parameter.uniform_(0.7, 1.3, generator=generator)
            elif parameter.is_floating_point():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
                parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model

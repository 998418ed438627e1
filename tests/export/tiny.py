"""Segmenters so small that they can be exported in seconds: every method, every kind of backbone."""

from __future__ import annotations

import functools

import torch
from helpers.parts import randomise
from helpers.small_segmenter import NAMES
from helpers.vits import DINOV2, DINOV3, eomt_config, pmt_config

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import ModelConfig
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build
from m2f_cli.structures.categories import from_names

RESNET = {"name": "resnet", "depth": 18, "stem": "basic", "norm": "frozen_bn", "stem_channels": 8, "width": 8}
SWIN = {
    "name": "swin",
    "embed_dim": 16,
    "depths": [2, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "drop_path": 0.0,
}
DEFORMABLE = {
    "name": "deformable",
    "dim": 32,
    "mask_dim": 32,
    "num_layers": 1,
    "ffn_dim": 32,
    "num_heads": 2,
    "num_points": 2,
}
MASKED = {"name": "masked", "dim": 32, "num_queries": 12, "num_layers": 3, "num_heads": 2, "ffn_dim": 32}
FPN = {
    "name": "transformer_fpn",
    "dim": 32,
    "mask_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_dim": 32,
    "dropout": 0.0,
}
PLAIN = {"name": "plain", "dim": 32, "num_queries": 12, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "dropout": 0.0}
NETWORKS = {
    "mask2former-resnet": {"method": "mask2former", "backbone": RESNET, "pixel_decoder": DEFORMABLE, "decoder": MASKED},
    "mask2former-swin": {"method": "mask2former", "backbone": SWIN, "pixel_decoder": DEFORMABLE, "decoder": MASKED},
    "maskformer-resnet": {"method": "maskformer", "backbone": RESNET, "pixel_decoder": FPN, "decoder": PLAIN},
    "mpformer-resnet": {
        "method": "mpformer",
        "backbone": RESNET,
        "pixel_decoder": DEFORMABLE,
        "decoder": {**MASKED, "piloted": True},
    },
}
_EOMT = {
    kind: eomt_config(model, num_queries=12, depth=2, first_block=1, num_blocks=1).model_dump(exclude_none=True)
    for kind, model in (("dinov2", DINOV2), ("dinov3", DINOV3))
}
NETWORKS |= {
    "eomt-dinov2": _EOMT["dinov2"],
    "eomt-dinov3": _EOMT["dinov3"],
    "pmt": pmt_config().model_dump(exclude_none=True),
}
PRESETS = {
    "mask2former": "coco-panoptic-r50",
    "maskformer": "maskformer-coco-panoptic-r50",
    "mpformer": "mpformer-coco-instance-r50-50ep",
    "eomt": "eomt-coco-panoptic-s-640",
    "pmt": "pmt-coco-panoptic-l-640",
}
WINDOWS = (  # in place of the square of a plain ViT
    "task=semantic",
    "test.tasks=[semantic]",
    "test.resize.fit=null",
    "test.resize.short_edge=64",
    "test.slide.crop=[64,64]",
    "test.slide.even=true",
)
RESIZED = ("test.resize.short_edge=64", "test.resize.max_edge=128")
SQUARE = ("test.resize.fit=64", "test.tasks=[panoptic,instance,semantic]")


@functools.cache
def tiny_segmenter(network: str = "mask2former-resnet", *overrides: str) -> Segmenter:
    """Random weights with which things are found, six classes (three are things), the short edge 64."""
    model = ModelConfig.model_validate(NETWORKS[network])
    config = configuration.load(
        PRESETS[model.method],
        [*(SQUARE if model.method in ("eomt", "pmt") else RESIZED), "test.object_threshold=0.4", *overrides],
    )
    net = randomise(build(model, len(NAMES)), seed=10).eval()
    with torch.no_grad():  # without this all queries and all pixels would get nearly one answer
        for name, parameter in net.named_parameters():
            parameter.mul_(0.5 if name.endswith("bias") else 8 if "query" in name else 1)
        net.decoder.class_embed.weight.mul_(12)
        net.decoder.class_embed.bias.sub_(net(torch.zeros(1, 3, 64, 96)).last.class_logits_BQK[0].mean(0))
    config = config.model_copy(update={"model": model})
    return Segmenter(net, config, from_names(NAMES, things=NAMES[:3]), source=network)

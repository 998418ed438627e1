"""A checkpoint of LoRA that stores only what was trained, and the weights of a tiny DINOv2 that it lies over."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from helpers.vits import DINOV2, TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights.models import CATEGORIES, config_of, network_of

from m2f_cli import weights
from m2f_cli.training.initialise import initialise
from m2f_cli.weights.low_rank import plain_name, without_changes
from m2f_cli.weights.trained_only import base_of, left_out

BASE = "dinov2.safetensors"
CHANGE = "backbone.net.blocks.0.attn.qkv.parametrizations.weight.0."


def write(folder: Path) -> Path:
    """Write the base and the checkpoint into a folder, and return the checkpoint."""
    torch.manual_seed(7)
    net = timm.create_model(DINOV2, num_classes=0, img_size=64, patch_size=16, **TINY)
    save_file(net.state_dict(), folder / BASE)
    vit = {"name": "vit", "model": DINOV2, "img_size": 64, "dim": 16, "pretrained": str(folder / BASE)}
    config = config_of({**vit, "lora": {"rank": 2}, **TINY})
    network = network_of(config)
    origin = initialise(network, config, CATEGORIES).origin
    frozen = {plain_name(name) for name, parameter in network.named_parameters() if not parameter.requires_grad}
    names = left_out(frozen, origin.names)
    base = base_of(origin.kind, origin.reference, without_changes(network.state_dict()), names)
    stored = {name: x for name, x in network.state_dict().items() if plain_name(name) not in names}
    return weights.save(folder / "a.safetensors", stored, config, CATEGORIES, base)


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a checkpoint."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["m2f"]), load_file(path)


def rewrite(
    path: Path,
    header: Callable[[dict[str, Any]], object] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
) -> Path:
    """Change the header and the tensors of a checkpoint; a tensor that is None is removed."""
    tree, found = parts(path)
    tree = copy.deepcopy(tree)
    if header is not None:
        header(tree)
    found = {name: x for name, x in {**found, **(tensors or {})}.items() if x is not None}
    save_file(found, path, {"m2f": json.dumps(tree)})
    return path

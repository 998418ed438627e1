"""LoRA (Hu et al. 2021): a pretrained backbone is frozen, and linear layers in it learn a change of low rank."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..config.schema import Component, LoraConfig
from ..errors import ConfigError
from ..ops.low_rank import THIRDS, low_rank_sum, parts_of
from .layers.precision import full_precision

FUSED = "qkv"
LAYERS = {  # target → last part of the names of its layers: m2f's own, and those of timm
    "q": ("q", "q_proj"),
    "k": ("k", "k_proj"),
    "v": ("v", "v_proj"),
    "proj": ("proj",),
    "mlp": ("fc1", "fc2", "fc1_g", "fc1_x", "w12", "w3"),
}


class LowRank(nn.Module):
    """Parametrisation of the weights of a linear layer, which is the identity at first.

    Args:
        weight_OI: the weights.
        lora: its options.
        num_parts: 3 for a fused projection of queries, keys and values, else 1.
    """

    is_new = True  # no pretrained numbers: the learning rate is that of new parts

    def __init__(self, weight_OI: Tensor, lora: LoraConfig, num_parts: int):
        super().__init__()
        self.scale, self.parts = lora.scale, parts_of(lora.targets, num_parts)
        rows, columns = weight_OI.shape[0] // num_parts, weight_OI.shape[1]
        self.A = nn.Parameter(torch.empty(len(self.parts), lora.rank, columns))
        self.B = nn.Parameter(torch.zeros(len(self.parts), rows, lora.rank))
        for factor_RI in self.A:
            nn.init.kaiming_uniform_(factor_RI, a=math.sqrt(5))

    def forward(self, weight_OI: Tensor) -> Tensor:
        with full_precision(weight_OI.device):  # as in the weights that are merged later
            return low_rank_sum(weight_OI, self.A, self.B, self.scale, self.parts)


def add_lora(backbone: nn.Module, component: Component) -> None:
    """Freeze a backbone and give the layers that `component.lora` names a change of low rank; without it, do nothing.

    Parts of the backbone that are new, because no pretrained network has them, are trained: its attribute `new_parts`
    names them.

    Raises:
        ConfigError: the backbone lacks layers of a target, or the rank is larger than a layer.
    """
    lora = component.lora
    if lora is None:
        return
    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: layer for name, layer in layers.items() if _targets_of(name) & {*lora.targets}}
    lacking = {*lora.targets}.difference(*map(_targets_of, chosen))
    if lacking:
        raise ConfigError(
            f"The backbone {component.name} has no layers for LoRA's target {', '.join(sorted(lacking))}.",
            hint=f"Transformers have them. Leave model.backbone.lora out, or choose of {', '.join(LAYERS)}.",
        )
    new_parts = tuple(getattr(backbone, "new_parts", ()))
    for name, parameter in backbone.named_parameters():
        if name.split(".")[0] not in new_parts:
            parameter.requires_grad_(False)
    for name, layer in chosen.items():
        num_parts = len(THIRDS) if name.endswith(FUSED) else 1
        smallest = min(layer.out_features // num_parts, layer.in_features)
        if lora.rank > smallest:
            raise ConfigError(
                f"model.backbone.lora.rank is {lora.rank}, larger than the layer {name}, whose rank is {smallest}.",
                hint="Usual ranks are 4 to 32.",
            )
        change = LowRank(layer.weight, lora, num_parts)
        # PyTorch's check would compute every change once
        parametrize.register_parametrization(layer, "weight", change, unsafe=True)


def _targets_of(name: str) -> Collection[str]:
    """Return the targets that a layer of this name belongs to."""
    last = name.rsplit(".", 1)[-1]
    return {*THIRDS} if last == FUSED else {target for target, names in LAYERS.items() if last in names}

"""Weights of a network in training under the names of published weights, with or without the changes of LoRA."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..config.schema import LoraConfig
from ..ops.low_rank import low_rank_sum, parts_of

_ORIGINAL = ".parametrizations.weight.original"  # names of torch.nn.utils.parametrize
_A, _B = ".parametrizations.weight.0.A", ".parametrizations.weight.0.B"


def plain_name(name: str) -> str:
    """Return the name that a tensor has in a network without LoRA."""
    return name.replace(_ORIGINAL, ".weight")


def without_changes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network as they were before LoRA, under their names in a network without it."""
    return {plain_name(name): tensor for name, tensor in state.items() if not name.endswith((_A, _B))}


def merged(state: Mapping[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """Return the tensors of a network without LoRA that computes the same as the network with it.

    Args:
        state: tensors of the network with LoRA; original weights may have their plain names.

    Raises:
        KeyError, ValueError, RuntimeError: the tensors are not those of such a network.
    """
    result = without_changes(state)
    if lora is None:
        return result
    for name, a_TRI in state.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            weight_OI, b_TDR = result[f"{layer}.weight"], state[layer + _B]
            parts = parts_of(lora.targets, weight_OI.shape[0] // b_TDR.shape[1])
            result[f"{layer}.weight"] = low_rank_sum(weight_OI.float(), a_TRI.float(), b_TDR.float(), lora.scale, parts)
    return result

"""Weights of a network in training under the names of published weights, with or without the changes of LoRA."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..config.schema import LoraConfig
from ..ops.low_rank import THIRDS, low_rank_sum, parts_of

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
        ValueError: the tensors are not those of such a network.
    """
    result = without_changes(state)
    layers = {name.removesuffix(end) for name in state for end in (_A, _B) if name.endswith(end)}
    for layer in sorted(layers):
        lacking = [name for name in (layer + _A, layer + _B) if name not in state]
        if lora is None:
            raise ValueError(f"{layer} is changed, and the configuration has no lora")
        if lacking or f"{layer}.weight" not in result:
            raise ValueError(f"there is no {(*lacking, f'{layer}.weight')[0]}")
        weight_OI, a_TRI, b_TDR = result[f"{layer}.weight"], state[layer + _A], state[layer + _B]
        parts = _parts(weight_OI, a_TRI, b_TDR, lora)
        result[f"{layer}.weight"] = low_rank_sum(weight_OI.float(), a_TRI.float(), b_TDR.float(), lora.scale, parts)
    return result


def _parts(weight_OI: Tensor, a_TRI: Tensor, b_TDR: Tensor, lora: LoraConfig) -> tuple[int, ...]:
    """Return the parts of a layer that change. Shapes are compared first: of others, the product may be huge.

    Raises:
        ValueError: the shapes are not those of changes of the layer.
    """
    for num_parts in (1, len(THIRDS)):
        parts = parts_of(lora.targets, num_parts)
        rows, columns = (weight_OI.shape[0] // num_parts, weight_OI.shape[1]) if weight_OI.dim() == 2 else (0, 0)
        shapes = (len(parts), lora.rank, columns), (len(parts), rows, lora.rank)
        if (a_TRI.shape, b_TDR.shape) == shapes and rows * num_parts == len(weight_OI):
            return parts
    found = ", ".join(str(tuple(tensor.shape)) for tensor in (weight_OI, a_TRI, b_TDR))
    raise ValueError(f"weights, A and B are {found}, where the rank is {lora.rank}")

"""FLOPs of a network by part, counted from its definition. They do not depend on the implementation of operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .. import model as networks
from ..config.schema import ModelConfig
from ..model.pixel_decoders.deformable import EncoderLayer
from ..ops.dispatch import plain_operators

PARTS = {"backbone": "backbone", "pixel_decoder": "pixel decoder", "decoder": "decoder"}
NOT_COUNTED = (
    "A multiplication and an addition are two. Counted: matrix products, convolutions, attention, and deformable "
    "attention by formula (2 x 4 corners x samples x channels). Not counted: norms, activations, softmax, resizing, "
    "element-wise work, deformable convolutions, the computation of sampling points."
)
CORNERS = 4


def flops_of(
    config: ModelConfig, num_classes: int, batch: int, size: tuple[int, int], *, trust_code: bool
) -> dict[str, int]:
    """Return the FLOPs of one forward pass: backbone, pixel decoder, decoder, render (masks at stride 4), total.

    Afterwards, caches by shape hold fake tensors. Call this only in a process that computes nothing more.

    Args:
        size: (height, width) of the network's input.
        trust_code: allow the configuration, which may have come with an exported file, to name code.

    Raises:
        ConfigError: the configuration names code and `trust_code` is false.
    """
    network = networks.build_shapes(config, num_classes, trust_code=trust_code).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu").requires_grad_(False)
        images_BCHW = torch.empty(batch, 3, *size)
        counts = _counted(network, lambda: network(images_BCHW).render())
    return {**counts, "total": sum(counts.values())}


def _counted(network: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention
    }  # older PyTorch does not count it
    counter = FlopCounterMode(display=False, depth=2, custom_mapping=attention)
    sampled = dict.fromkeys(PARTS, 0)
    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        for name, part in network.named_modules():
            if isinstance(part, EncoderLayer):
                hooks.callback(part.register_forward_hook(_adding(sampled, name.partition(".")[0])).remove)
        with counter, plain_operators():
            run()
    by_module = counter.get_flop_counts()
    root = type(network).__name__
    counts = {shown: sum(by_module.get(f"{root}.{name}", {}).values()) + sampled[name] for name, shown in PARTS.items()}
    inside = sum(sum(by_module.get(f"{root}.{name}", {}).values()) for name in PARTS)
    return {**counts, "render": counter.get_total_flops() - inside}


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _adding(sampled: dict[str, int], part: str) -> Callable[[nn.Module, tuple, Tensor], None]:
    def add(layer: nn.Module, _: tuple, output_BSC: Tensor) -> None:
        sampled[part] += 2 * CORNERS * layer.attn.num_levels * layer.attn.num_points * output_BSC.numel()

    return add


def parameters_of(network: nn.Module | None) -> dict[str, int]:
    """Return the number of parameters by part. The dictionary is empty for an exported file."""
    if network is None:
        return {}
    counts = {shown: sum(p.numel() for p in getattr(network, name).parameters()) for name, shown in PARTS.items()}
    return {**counts, "total": sum(p.numel() for p in network.parameters())}

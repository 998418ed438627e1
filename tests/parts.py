"""Help for tests: golden weights into parts of the network, and tiny networks."""

from __future__ import annotations

import torch
from torch import nn

from m2f_cli.config import ModelConfig
from m2f_cli.weights.names import to_ours
from m2f_cli.weights.tables import DETECTRON2

PREFIXES = {  # of a part: in the published layout, in ours
    "backbone": ("backbone.", "backbone."),
    "pixel_decoder": ("sem_seg_head.pixel_decoder.", "pixel_decoder."),
    "decoder": ("sem_seg_head.predictor.", "decoder."),
    "model": ("", ""),
}


def weights_of(tensors: dict[str, torch.Tensor], prefix: str = "weights/") -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_published(part: nn.Module, kind: str, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Put weights under the names of the published code into a part of our network, through the name table."""
    theirs, ours = PREFIXES[kind]
    shapes = {ours + name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    state = to_ours(DETECTRON2, {theirs + name: tensor for name, tensor in weights.items()}, shapes)
    part.load_state_dict({name[len(ours) :]: tensor for name, tensor in state.items()}, strict=True)
    return part.eval()


def tiny_config(**backbone) -> ModelConfig:
    """A Mask2Former small enough to run hundreds of times."""
    swin = {"name": "swin", "embed_dim": 16, "depths": [2, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 7,
            "drop_path": 0.3}
    return ModelConfig(
        method="mask2former",
        backbone=backbone or swin,
        pixel_decoder={"name": "deformable", "dim": 64, "mask_dim": 32, "num_layers": 2, "ffn_dim": 64, "num_heads": 4,
                       "num_points": 4},
        decoder={"name": "masked", "dim": 64, "num_queries": 12, "num_layers": 3, "num_heads": 4, "ffn_dim": 64},
    )


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and buffer a value that matters (fresh networks sample at whole pixels, weigh evenly …)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        with torch.no_grad():
            if name.endswith("running_var"):
                parameter.uniform_(0.5, 2.0, generator=generator)
            elif parameter.dim() < 2 and name.endswith("weight"):
                parameter.uniform_(0.7, 1.3, generator=generator)
            elif parameter.is_floating_point():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
                parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model

"""Parameters, gradients and optimiser state that processes share (FSDP2), for backbones that do not fit into each.

Each process holds an equal part of every parameter. A block of the backbone is put together while it computes; the rest
of the network for the length of a step. Files of a run have whole tensors, so that they are the same as without.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config.schema import TrainConfig
from ..errors import ConfigError, M2FError
from ..runtime import distributed
from .options import TrainOptions


def check(options: TrainOptions, train: TrainConfig) -> None:
    """Refuse what does not go together with shared parameters.

    Raises:
        ConfigError: it says which of both to leave out.
    """
    if not options.shard:
        return
    if distributed.world_size() == 1:
        raise ConfigError("--shard shares the network between processes, and there is one.", hint="Add --devices N.")
    others = {
        "--compile": options.compile,
        "--cache-features": options.cache_features is not None,
        "--batch auto": options.micro_batch == "auto",
        "--precision fp16": train.precision == "fp16",
    }
    for name, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"--shard does not work with {name}.", hint="Leave one of them out.")


def shard(model: nn.Module, device: torch.device) -> None:
    """Distribute the parameters of a network on the host over all processes. All begin with those of the first one.

    The whole network is never on the device: it gets there block by block.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            same = tensor.to(device, copy=True)
            dist.broadcast(same, src=0)
            tensor.copy_(same)
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place for all but a network that is a norm itself
    # The root's outputs are views, which no loss changes in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPMaskClassifier\) returned a view")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of the backbone, and of a decoder that is the end of one, which alone use their parameters."""
    for part in (model.backbone, getattr(model.decoder, "blocks", ())):
        modules = part.modules() if isinstance(part, nn.Module) else iter(part)
        for module in modules:
            if getattr(module, "recomputable", False):
                yield module
    net = getattr(model.backbone, "net", None)  # of timm
    for name, module in () if net is None else net.named_modules():
        if name.rpartition(".")[0].endswith("blocks") and name.rpartition(".")[2].isdecimal():
            yield module


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tree: Any) -> Any:
    """Return a tree with whole tensors, on the host, in place of shared ones. All processes must call it.

    Only the first process gets them; the others get None in their places. Everything else stays as it is.
    """
    if isinstance(tree, DTensor):
        tensor = tree.full_tensor()
        return tensor.cpu() if distributed.rank() == 0 else None
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def whole_everywhere(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the host of each process; those that are not shared are of the first process."""
    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            same = tensor.full_tensor()
        else:
            same = tensor.detach().clone()
            dist.broadcast(same, src=0)
        found[name] = same.cpu()
    return found


def shares(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's shares of whole tensors, distributed as the tensors of the same names in `like`."""
    return {name: share(tensor, like.get(name)) for name, tensor in tensors.items()}


def share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return the share of a whole tensor, if `like` is shared and has its shape. All processes must call it."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.dtype), like.device_mesh, like.placements)


def shares_of_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser with this process's shares of whole moments."""
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return state
    moments = {
        number: {name: share(value, parameters.get(number)) for name, value in each.items()}
        for number, each in state["state"].items()
    }
    return {**state, "state": moments}


def check_gradients(model: nn.Module) -> None:
    """Check that the shared network got gradients.

    Raises:
        M2FError: it did not; FSDP of an older PyTorch does not look for tensors in the outputs of our networks.
    """
    if all(parameter.grad is None for parameter in model.parameters()):
        raise M2FError("FSDP of this PyTorch gives no gradients.", hint="Update PyTorch, or leave out --shard.")

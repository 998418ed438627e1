"""AdamW as published (docs/methods/published-behaviour.md#2-1): learning rate and decay of each parameter, clipping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config.schema import LayerDecayConfig, OptimizerConfig, TrainConfig
from ..errors import ConfigError, nearest
from ..weights.low_rank import plain_name
from .schedule import factor

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


@dataclass(frozen=True)
class Setting:
    """Setting of a parameter.

    Attributes:
        multiplier: learning rate relative to the base.
        weight_decay: weight decay.
        is_pretrained: whether it follows the schedule of pretrained parts.
    """

    multiplier: float
    weight_decay: float
    is_pretrained: bool = False


def settings(model: nn.Module, config: OptimizerConfig, *, in_stages: bool = False) -> dict[str, Setting]:
    """Return the setting of every trainable parameter, by name.

    The backbone has its own learning rate, or its blocks have one by depth; modules in it whose class says
    `is_new = True` are new parts. Norm layers, embeddings and position tables have their own decay. All other
    parameters have the general one, including biases and the pixel decoder's raw level embedding.

    Args:
        model: the network.
        config: settings of the optimiser.
        in_stages: pretrained parts have a schedule of their own. They are the backbone, and what belongs to a
            pretrained network in other parts (`block_depths`).

    Raises:
        ConfigError: learning rates by depth are asked for, and no part of the network has depths.
    """
    depths = block_depths(model)
    if config.layer_decay is not None and not depths:
        raise ConfigError(
            "train.optimizer.layer_decay needs a network of numbered blocks, which this one is not.",
            hint="Leave it out: --set train.optimizer.layer_decay=null. A plain ViT has such blocks.",
        )
    count = 1 + max((depth for depth in depths.values() if depth is not None), default=-1)
    by_name = {}
    for module_name, module in model.named_modules():
        is_new = getattr(module, "is_new", False)
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}" if module_name else name
            if not parameter.requires_grad or full_name in by_name:
                continue
            in_backbone = "backbone" in module_name.split(".") and not is_new
            depth = None if is_new else depths.get(full_name)
            multiplier = config.backbone_multiplier if in_backbone else 1.0
            if config.layer_decay is not None:
                multiplier *= _by_depth(depth, count, config.layer_decay)
            is_pretrained = in_stages and not is_new and (in_backbone or full_name in depths)
            by_name[full_name] = Setting(multiplier, _decay(module, name, config), is_pretrained)
    return by_name


def block_depths(model: nn.Module) -> dict[str, int | None]:
    """Return the number of the block that each parameter of a pretrained network belongs to, by name.

    Parts of the network that have a method `lr_depths` say so of their own parameters: the number of the block in the
    whole pretrained network, -1 for what comes before the blocks, None for what comes after them. Parameters of new
    layers are left out.
    """
    depths: dict[str, int | None] = {}
    for module_name, module in model.named_modules():
        own: Mapping[str, int | None] = module.lr_depths() if hasattr(module, "lr_depths") else {}
        depths |= {f"{module_name}.{name}" if module_name else name: depth for name, depth in own.items()}
    return depths


def _by_depth(depth: int | None, count: int, config: LayerDecayConfig) -> float:
    if depth is None or depth >= count - config.whole_blocks:
        return 1.0
    is_below = depth < 0 and config.embeddings == "below"
    return config.rate ** (count - 1 - max(depth, 0) + is_below + config.last_exponent)


def _decay(module: nn.Module, name: str, config: OptimizerConfig) -> float:
    if isinstance(module, NORMS):
        return config.norm_weight_decay
    if isinstance(module, nn.Embedding) or name in POSITION_TABLES:
        return config.embedding_weight_decay
    return config.weight_decay


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, in_stages: bool = False) -> torch.optim.AdamW:
    """Return AdamW (betas 0.9 and 0.999, eps 1e-8) with a group per setting, whose values each group also has.

    On CUDA and on a CPU it is PyTorch's fused kernel, which needs one pass over all numbers and no synchronisation with
    a gradient scaler. `in_stages` is that of `settings`.

    Raises:
        ConfigError: all parameters are frozen.
    """
    parameters = dict(model.named_parameters())
    groups: dict[Setting, list[Tensor]] = {}
    for name, setting in settings(model, config, in_stages=in_stages).items():
        groups.setdefault(setting, []).append(parameters[name])
    if not groups:
        raise ConfigError("Every parameter is frozen: there is nothing to train.", hint="Freeze less.")
    optimizer = torch.optim.AdamW(
        [
            {
                "params": tensors,
                "lr": config.learning_rate * setting.multiplier,
                "weight_decay": setting.weight_decay,
                "multiplier": setting.multiplier,
                "is_pretrained": setting.is_pretrained,
            }
            for setting, tensors in groups.items()
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=is_fused(parameters.values()),
    )
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    optimizer.register_step_post_hook(_count_changes)
    return optimizer


def _count_changes(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Raise the version of each parameter: fused kernels do not, and cached forms of weights depend on it."""
    changed = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch.autograd.graph.increment_version(changed)


def is_fused(parameters: Iterable[Tensor]) -> bool | None:
    """Return True if PyTorch has a fused optimiser for the device of the parameters. None leaves the choice to it."""
    kinds = {parameter.device.type for parameter in parameters}
    return True if kinds in ({"cuda"}, {"cpu"}) else None


def _keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Take parameters and learning rates of the groups from a saved state, and all other options from this optimiser.

    One of those is `fused`, which depends on the device, and the run may have moved to another one.
    """
    both = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [own | {"params": saved["params"], "lr": float(saved["lr"])} for own, saved in both]
    return state | {"param_groups": groups}


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Check the moments that were loaded, because PyTorch uses them unchecked in the next step.

    Raises:
        ValueError, AttributeError, KeyError, TypeError: the moments do not fit their parameters.
    """
    for parameter, moments in optimizer.state.items():
        steps = moments["step"]
        if steps.dim() or not 0 <= float(steps) < float("inf"):
            raise ValueError("the optimizer has parameters with no number of steps")
        if not parameter.shape == moments["exp_avg"].shape == moments["exp_avg_sq"].shape:
            raise ValueError("the optimizer's moments have other shapes than their parameters")


def lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments that were loaded the layout of their parameters in memory.

    Fused kernels walk through both as they lie there. A run may go on where convolutions have another layout.
    """
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(moments[name])


def follow_schedule(optimizer: torch.optim.Optimizer, iteration: int, train: TrainConfig) -> float:
    """Set the learning rates of an iteration, and return that of new parts."""
    factors = {
        is_pretrained: factor(iteration, train.iterations, train.schedule, is_pretrained=is_pretrained)
        for is_pretrained in (False, True)
    }
    for group in optimizer.param_groups:
        group["lr"] = train.optimizer.learning_rate * factors[group["is_pretrained"]] * group["multiplier"]
    return train.optimizer.learning_rate * factors[False]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group to its share of one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["multiplier"]


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Freeze every parameter whose name begins with one of `prefixes`, and return the number of frozen weights.

    The statistics of batch norms below a prefix must not change either: pass the prefixes to `train_mode`.

    Raises:
        ConfigError: no parameter begins with a prefix, or it would freeze what LoRA trains.
    """
    frozen = 0
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        begins = [name for name in names if _below(name, prefix)]
        if not begins:
            known = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)})
            close = nearest(prefix, known) or known[:4]
            hint = f"Did you mean {' or '.join(close)}?"
            raise ConfigError(f"Nothing in the network is called {prefix!r}.", hint=hint)
        if any(getattr(model.get_submodule(name.rpartition(".")[0]), "is_new", False) for name in begins):
            raise ConfigError(
                f"--freeze {prefix} would freeze what LoRA trains; LoRA has frozen the rest of the backbone already.",
                hint="Leave out --freeze, or model.backbone.lora.",
            )
        for name, parameter in model.named_parameters():
            if name in begins and parameter.requires_grad:
                parameter.requires_grad_(False)
                frozen += parameter.numel()
    return frozen


def frozen_norms(model: nn.Module, prefixes: Sequence[str]) -> Iterator[nn.Module]:
    """Yield the batch norms in frozen parts, whose statistics must not change either.

    Names decide, not `requires_grad`: MMSegmentation freezes scale and shift while the statistics change
    (docs/methods/published-behaviour.md#2-6).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(_below(name, prefix) for prefix in prefixes):
            yield module


def frozen_tensors(model: nn.Module, prefixes: Sequence[str]) -> set[str]:
    """Return the names, without LoRA, of the tensors that training does not change.

    They are parameters without a gradient, and the buffers below frozen prefixes.
    """
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    names |= {name for name, _ in model.named_buffers() if any(_below(name, prefix) for prefix in prefixes)}
    return {*map(plain_name, names)}


def train_mode(model: nn.Module, frozen: Sequence[str] = ()) -> None:
    """Set the network to training mode, except for the batch norms of its frozen parts."""
    model.train()
    for norm in frozen_norms(model, frozen):
        norm.eval()


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def trainable_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """Return (part, number of trainable weights, number of all weights) for each part of the network, for people."""
    rows = []
    for part, module in model.named_children():
        parameters = list(module.parameters())
        rows.append((part, sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)))
    return rows


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm` (0: no limit), and return the old norm.

    With a gradient scaler, call it after unscaling (docs/methods/published-behaviour.md#2-1). The norm stays on the
    device.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of shared gradients
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], max_norm, norm)
    return norm

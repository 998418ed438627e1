"""Networks built from configurations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import plugins
from ..config.schema import Component, ModelConfig
from ..errors import ConfigError, unknown_name
from .lora import add_lora
from .mask_classifier import MaskClassifier

# Errors that unsuitable numbers raise in constructors of Python and torch, memory errors included.
_SENSELESS = (
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    MemoryError,
)


def build(config: ModelConfig, num_classes: int, *, trust_code: bool = False) -> MaskClassifier:
    """Make the network that `config` describes, with random weights.

    Args:
        num_classes: without "no object"; it comes from the data.
        trust_code: whether the configuration may name code ("module:object").

    Raises:
        ConfigError: a part or one of its options is unknown, missing or makes no sense, or names code without
            `trust_code`.
    """
    backbone = _make("backbones", config.backbone, trust_code, has=("channels",))
    add_lora(backbone, config.backbone)
    has = ("dim", "mask_dim")
    pixel_decoder = _make("pixel_decoders", config.pixel_decoder, trust_code, has=has, channels=backbone.channels)
    given = {"num_classes": num_classes, "in_dim": pixel_decoder.dim, "mask_dim": pixel_decoder.mask_dim}
    given |= _for_pilots(config)
    decoder = _make("decoders", config.decoder, trust_code, **given)
    _check_levels(config, pixel_decoder, decoder)
    return MaskClassifier(backbone, pixel_decoder, decoder, num_classes)


def build_shapes(config: ModelConfig, num_classes: int, *, trust_code: bool = False) -> MaskClassifier:
    """Build the network on the meta device: parameters have shapes and no numbers. Arguments and errors as `build`."""
    with torch.device("meta"), _NoInitialisation():
        return build(config, num_classes, trust_code=trust_code)


class _NoInitialisation(TorchFunctionMode):
    """Mode that skips random numbers for meta tensors, for which PyTorch would import its compiler."""

    drawn = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.drawn or getattr(func, "__module__", None) == nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def checkpoint_activations(model: MaskClassifier) -> None:
    """Trade time for memory in training: compute modules twice whose class says `recomputable = True`.

    Gradients stay the same. Backbones of timm have a switch of their own.
    """
    if hasattr(model.backbone, "net"):
        model.backbone.net.set_grad_checkpointing(True)
    for module in model.modules():
        if getattr(module, "recomputable", False):
            _recompute(module)


def _recompute(module: nn.Module) -> None:
    """Keep no intermediate results of `module` in training: the gradient computes them again."""
    module.forward = functools.partial(_recomputed, module)  # no closure: it is copied and sent with its module


def _recomputed(module: nn.Module, *args: Any, **options: Any) -> Any:
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **options)


def _for_pilots(config: ModelConfig) -> dict[str, bool]:
    """Return the decoder options of mask-piloted training; MP-Former itself has no learned positions
    (docs/methods/published-behaviour.md#6-1)."""
    if config.piloting is None:
        return {}
    kept = config.piloting.query_positions
    asked = {"piloted": True, "query_positions": config.method != "mpformer" if kept is None else kept}
    return {name: value for name, value in asked.items() if name not in config.decoder.options}


def _make(group: str, component: Component, trust_code: bool, *, has: Sequence[str] = (), **given: Any) -> Any:
    """Make one part; `has` names the attributes that the next part needs."""
    part = plugins.get(group, component.name, trust_code=trust_code)
    with plugins.using(component.name):
        made = _called(part, component, given)
    lacking = [name for name in has if not hasattr(made, name)]
    if not isinstance(made, nn.Module) or lacking:
        what = f"lacks {' and '.join(lacking)}" if isinstance(made, nn.Module) else f"is {type(made).__name__}"
        needed = "a torch.nn.Module" + (f" with {' and '.join(has)}" if has else "")
        raise ConfigError(
            f"What {component.name!r} makes for {group} {what}; it must be {needed}.", hint="Look into that code."
        )
    return made


def _check_levels(config: ModelConfig, pixel_decoder: nn.Module, decoder: nn.Module) -> None:
    """Refuse a decoder that cannot use the levels it is given, as far as both parts say what theirs are.

    Raises:
        ConfigError: one has maps and the other tokens, or there are more levels than the decoder takes.
    """
    kinds = [getattr(part, "kind_of_levels", None) for part in (pixel_decoder, decoder)]
    counts = [getattr(part, "num_levels", None) for part in (pixel_decoder, decoder)]
    if None not in kinds and kinds[0] != kinds[1]:
        given, taken = kinds
    elif None not in counts and counts[0] > counts[1]:
        given, taken = f"{counts[0]} levels", f"{counts[1]} at most"
    else:
        return
    raise ConfigError(
        f"The pixel decoder {config.pixel_decoder.name} gives {given}, but the decoder {config.decoder.name} takes "
        f"{taken}.",
        hint="Choose parts of one method (m2f presets list), with the same num_levels.",
    )


def _called(part: Any, component: Component, given: dict[str, Any]) -> Any:
    parameters = inspect.signature(part).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = component.options
    for option in options:
        if option not in parameters and not takes_any:
            raise unknown_name(f"option of {component.name}", option, parameters)
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in {**options, **given}
    ]
    if missing:
        raise ConfigError(f"The configuration of {component.name} does not say {', '.join(missing)}.")
    try:
        return part(**given, **options)
    except _SENSELESS as error:
        raise ConfigError(f"The configuration of {component.name} makes no sense: {str(error).rstrip('.')}.") from error

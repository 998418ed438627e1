"""Models of the package timm (the extra `m2f-cli[timm]`), which must not read files or ask servers by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, MissingDependency, unknown_name

# Options by which timm would download or unpickle files, and those of the place of a model.
_NOT_OF_A_NETWORK = ("checkpoint_path", "cache_dir", "pretrained_", "device", "dtype")
MOST_TIMES = 4  # limit for the numbers of a model, in those of the tensors that it is filled with
_ALWAYS = 10_000_000  # numbers that a model may have, however few tensors there are


def imported(model: str) -> Any:
    """Return the package timm, which knows `model`.

    Raises:
        MissingDependency: timm is not installed.
        ConfigError: timm does not know the name.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingDependency("timm", f"The backbone {model!r}", "timm") from error
    # A name with a colon is a place on a server or on this machine.
    if ":" in model or not timm.is_model(model):
        raise unknown_name("timm model", model, timm.list_models())
    return timm


def create(model: str, **options: Any) -> nn.Module:
    """Make a timm model with random weights.

    Args:
        model: timm's name of it.
        options: passed on to `timm.create_model`.

    Raises:
        MissingDependency: timm is not installed.
        ConfigError: timm does not know the name, or an option is not one of a network or makes no sense.
    """
    wrong = next((name for name in options if name.startswith(_NOT_OF_A_NETWORK)), None)
    if wrong is not None:
        raise ConfigError(
            f"The option {wrong!r} of the timm model {model!r} is none of a network.",
            hint="Name the weights as `pretrained`: m2f reads them without running what is in them.",
        )
    made = imported(model).create_model(model, pretrained=False, **options)
    dim, heads = getattr(made, "embed_dim", None), options.get("num_heads")
    if type(dim) is int and type(heads) is int and dim % heads:  # not every model of timm looks
        raise ConfigError(f"{heads} heads do not divide the {dim} channels of the timm model {model!r}.")
    return made


def create_filled(model: str, tensors: Mapping[str, Tensor], **options: Any) -> nn.Module:
    """Make a timm model and load tensors with timm's own loader, which resamples kernels and positions.

    Raises:
        MissingDependency, ConfigError: as `create`.
        ValueError: the model is far larger than the tensors.
        RuntimeError, KeyError and others: the options make no sense, or the tensors do not fit.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create(model, **options).parameters())
    given = sum(tensor.numel() for tensor in tensors.values())
    if count > max(MOST_TIMES * given, _ALWAYS):
        raise ValueError(f"the model has {count:,} numbers, the file {given:,}")
    overlay = {"state_dict": tensors}
    return imported(model).create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **options)

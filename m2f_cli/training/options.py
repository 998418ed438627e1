"""What a person says about a run beside its configuration; env.json keeps it for resuming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import ConfigError
from ..runtime import documents

_HINT = "Remove it, and give --data and the other options of the run again."
OF_ONE_START = ("resume", "device", "workers", "trust_code")  # what a resumed run does not take over from before


@dataclass(frozen=True)
class TrainOptions:
    """How to train, beside what the configuration says.

    data: the folder of annotated images; None for the preset's own (generated images only).
    init: weights to start from; None: the backbone's own ImageNet weights; "random": nothing.
    init_partial: `init` is a file of a backbone alone and may lack a part of it, which starts fresh.
    micro_batch: images per forward pass and process; None is at most 2, "auto" as many as the memory holds. The rest
        of `train.batch` is accumulated.
    keep: how many numbered checkpoints are kept beside last and best.
    trust_code: whether the configuration may name code: that of a new run is what the user wrote, that of a folder
        that is resumed may be somebody else's. No file says this, env.json neither.
    """

    data: Path | None = None
    init: str | None = None
    init_partial: bool = False
    freeze: tuple[str, ...] = ()
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    workers: int = 0
    device: str = "auto"
    resume: bool = False
    loggers: tuple[str, ...] = ()
    compile: bool = False
    checkpoint_activations: bool = False
    keep: Annotated[int, Field(ge=0)] = 0
    skip_broken: bool = False
    val_pictures: Annotated[int, Field(ge=1)] | None = None
    trust_code: bool = False


def read_environment(path: Path) -> dict[str, Any]:
    """Read what a run's env.json says, which may be somebody else's; nothing where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        tree = documents.read_json(path, error=ConfigError)
    except ConfigError as error:
        raise ConfigError(error.message, hint=_HINT) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("options"), dict):
        raise ConfigError(f"{path} does not say with which options the run was started.", hint=_HINT)
    return tree


def stored_options(path: Path) -> TrainOptions:
    """Read the options that a run was started with; those of `OF_ONE_START` are not taken from a file.

    Args:
        path: of the run's env.json, which may be somebody else's.

    Raises:
        ConfigError: damaged, or values of other kinds.
    """
    options = read_environment(path).get("options", {})
    try:
        known = {name: value for name, value in options.items() if name not in OF_ONE_START}
        return TypeAdapter(TrainOptions).validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{path}: the option {first['loc'][0]} = {first['input']!r} makes no sense: {first['msg']}."
        raise ConfigError(message, hint=_HINT) from error

"""Options of a run beside its configuration. env.json keeps them for resuming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from ..errors import ConfigError
from ..runtime import checksums, documents
from ..storage.uris import place_of
from ..structures.schemas import shown

_HINT = "Remove it, and give --data and the other options of the run again."
OF_ONE_START = ("resume", "device", "workers", "shard", "trust_code", "time_budget")  # a resumed run has its own


def _place(value: Any) -> Any:
    return place_of(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run beside its configuration.

    Attributes:
        data: folder of annotated images, or the URI of one in a store. None: the generated images of the preset.
        init: initial weights. None: the ImageNet weights of the backbone. "random": none.
        init_partial: `init` is a file of a backbone alone and may lack parts, which start fresh.
        freeze: prefixes of parameters that are not trained.
        micro_batch: images per forward pass and process. None: at most 2. "auto": as many as fit into memory. The rest
            of `train.batch` is accumulated.
        store: content of checkpoints: "whole", or "trained" for what is not frozen and a description of the weights
            that the run started from. None: "trained" with LoRA, else "whole".
        cache_features: folder that keeps the features of a frozen backbone. None: they are computed in each epoch.
        workers: processes that load data.
        device: name of the device, or "auto".
        resume: go on with the run in the folder.
        loggers: names of loggers beside metrics.jsonl.
        compile: compile the network.
        shard: share parameters, gradients and optimiser state between processes.
        checkpoint_activations: recompute activations in the backward pass, to save memory.
        keep: number of numbered checkpoints that are kept beside last and best.
        skip_broken: skip images that cannot be read. Otherwise they are errors.
        val_pictures: most images of an evaluation during training. None: all.
        time_budget: seconds after which the run is saved and ends, so that it can go on later. None: no limit.
        trust_code: allow the configuration to name code. That of a new run is the user's, but that of a resumed folder
            may be somebody else's. It is never read from a file, not even from env.json.
    """

    data: Annotated[Path | str | None, BeforeValidator(_place)] = None
    init: str | None = None
    init_partial: bool = False
    freeze: tuple[str, ...] = ()
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    store: Literal["whole", "trained"] | None = None
    cache_features: Path | None = None
    workers: int = 0
    device: str = "auto"
    resume: bool = False
    loggers: tuple[str, ...] = ()
    compile: bool = False
    shard: bool = False
    checkpoint_activations: bool = False
    keep: Annotated[int, Field(ge=0)] = 0
    skip_broken: bool = False
    val_pictures: Annotated[int, Field(ge=1)] | None = None
    time_budget: Annotated[float, Field(gt=0)] | None = None
    trust_code: bool = False


def read_environment(path: Path) -> dict[str, Any]:
    """Read the env.json of a run, which may be somebody else's. The result is empty if there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = documents.read_bytes(path, largest=documents.LARGEST_TEXT, error=ConfigError)
        tree = documents.parse_json(checksums.unsealed(content), str(path), error=ConfigError)
    except checksums.ChecksumError as error:
        raise ConfigError(f"{path} is damaged: {error}.", hint=_HINT) from error
    except ConfigError as error:
        raise ConfigError(error.message, hint=_HINT) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("options"), dict):
        raise ConfigError(f"{path} does not say with which options the run was started.", hint=_HINT)
    return tree


def stored_options(path: Path) -> TrainOptions:
    """Read the options that a run was started with, except those of `OF_ONE_START`.

    Args:
        path: env.json of the run, which may be somebody else's.

    Raises:
        ConfigError: the file is damaged, or a value has the wrong type.
    """
    options = read_environment(path).get("options", {})
    try:
        known = {name: value for name, value in options.items() if name not in OF_ONE_START}
        return TypeAdapter(TrainOptions).validate_python(known)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "of no name"
        message = f"{path}: the option {name} = {shown(first['input'])} makes no sense: {first['msg']}."
        raise ConfigError(message, hint=_HINT) from error

"""Content of the checkpoints of a run: all weights, or those that were trained and a description of their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import weights
from ..config.schema import Config
from ..errors import ConfigError, WeightsError
from ..structures.categories import Categories
from ..weights.checkpoint import Base
from ..weights.low_rank import merged, plain_name, without_changes
from ..weights.readers import path_of
from ..weights.trained_only import base_of, left_out
from .optimizer import frozen_tensors
from .options import TrainOptions
from .sharding import is_sharded, whole_everywhere


@dataclass(frozen=True)
class Origin:
    """Weights that a training started from.

    Attributes:
        kind: as in `weights.checkpoint.Base`.
        reference: where they are; a file by its absolute path.
        names: tensors of the network without LoRA that were taken as they are.
    """

    kind: str
    reference: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, reference: str, names: tuple[str, ...]) -> Origin:
        """Return the origin for a reference as the user wrote it."""
        path = path_of(reference)
        return cls(kind, str(path.absolute()) if path.exists() else reference, names)

    @classmethod
    def of_tree(cls, tree: Any) -> Origin | None:
        """Return what `vars` of an origin became in a file of a run, which may be somebody else's.

        Raises:
            WeightsError: it makes no sense.
        """
        if tree is None:
            return None
        known = {"kind", "reference", "names"}
        if not isinstance(tree, dict) or {*tree} != known or tree["kind"] not in ("pretrained", "init"):
            raise WeightsError("What the state of the run says of the weights that it started from makes no sense.")
        return cls(tree["kind"], str(tree["reference"]), tuple(map(str, tree["names"])))


@dataclass(frozen=True)
class StoredWeights:
    """Content of the checkpoints of a run.

    Attributes:
        base: where the rest is. None: they store all weights, with the changes of LoRA in them.
        left_out: names, without LoRA, of the tensors that they do not store.
    """

    base: Base | None = None
    left_out: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, settings: Config, options: TrainOptions, origin: Origin | None) -> StoredWeights:
        """Choose what to store: with LoRA what was trained if there is a base, otherwise everything, unless asked for.

        Args:
            model: the network; its frozen tensors are as in the base.

        Raises:
            ConfigError: only what is trained is asked for, and all of it is, or the rest started from random numbers.
        """
        store = options.store or ("whole" if settings.model.backbone.lora is None else "trained")
        names = left_out(frozen_tensors(model, options.freeze), () if origin is None else origin.names)
        if store == "trained" and names and origin is not None:
            state = whole_everywhere(model.state_dict()) if is_sharded(model) else model.state_dict()
            base = base_of(origin.kind, origin.reference, without_changes(state), names)
            return cls(base, frozenset(names))
        if options.store == "trained":
            raise ConfigError(
                "--store trained leaves out what is frozen and in the weights that the training starts from; there is "
                "no such tensor.",
                hint="Freeze a part (--freeze backbone, or LoRA) and start from weights, or leave out --store.",
            )
        return cls()

    def write(self, path: Path, state: Mapping[str, Tensor], settings: Config, categories: Categories) -> Path:
        """Write a checkpoint of the tensors that a network has in training."""
        if self.base is not None:
            stored = {name: tensor for name, tensor in state.items() if plain_name(name) not in self.left_out}
            return weights.save(path, stored, settings, categories, self.base)
        plain = settings.model_copy(update={"model": settings.model.without_lora()})
        return weights.save(path, merged(state, settings.model.backbone.lora), plain, categories)

"""Checkpoints that hold only what was trained: the rest is in the weights that the training started from, its base.

The header of such a file says where its base is and how its tensors hash, so that no other weights are taken for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.schema import Component
from ..errors import M2FError, WeightsError
from . import low_rank, resolve
from .base_encoder import beside
from .checkpoint import Base, Checkpoint
from .download import Progress
from .key_mapping import Shape, spelled, to_m2f
from .key_tables import TABLES
from .pretrained import load_alone, load_backbone

_MOST_BASES = 8  # one over the other; a file that names itself would have no end
# Resampled from other sizes when they are loaded, with the rounding of a machine: stored, though not trained.
_RESAMPLED = re.compile(r"(pos_embed|patch_embed\.proj\.weight|relative_position_bias_table)$")


def load(ref: str | Path, *, progress: Progress | None = None, trust_code: bool = False, above: int = 0) -> Checkpoint:
    """Find, fetch and read weights as `resolve.load`; what a file does not store comes from its base.

    Changes of LoRA are in the weights of the result.

    Args:
        above: number of files that this one is the base of, one over the other.

    Raises:
        WeightsError: as `resolve.load`, or the base is missing or has other weights than the training started from.
    """
    checkpoint = resolve.load(ref, progress=progress, trust_code=trust_code)
    if checkpoint.base is None and checkpoint.model.backbone.lora is None:
        return checkpoint
    tensors = low_rank.without_changes(checkpoint.tensors)
    if checkpoint.base is not None:
        if above >= _MOST_BASES:
            raise WeightsError(f"{ref} is the base of a base, more than {_MOST_BASES} times.")
        tensors = {**_rest(checkpoint, checkpoint.base, tensors.keys(), progress, above), **tensors}
    try:
        tensors = low_rank.merged({**checkpoint.tensors, **tensors}, checkpoint.model.backbone.lora)
    except ValueError as error:
        raise WeightsError(
            f"{checkpoint.source} does not hold the changes of LoRA that it describes: {error}."
        ) from error
    model = checkpoint.model.without_lora()
    config = checkpoint.config and checkpoint.config.model_copy(update={"model": model})
    return dataclasses.replace(checkpoint, tensors=tensors, model=model, config=config, base=None)


def _rest(
    checkpoint: Checkpoint, base: Base, stored: Collection[str], progress: Progress | None, above: int
) -> dict[str, Tensor]:
    """Return the tensors that a file does not store, from its base.

    Raises:
        WeightsError: the base is missing, or its tensors have another hash.
    """
    wanted = {name: shape for name, shape in base.shapes.items() if name not in stored}
    near = beside(Path(checkpoint.source), ("base",))
    reference = base.reference if near is None else str(near)
    hint = "Put the weights that it was trained from beside it, as base.safetensors."
    try:
        found = _read(checkpoint.model.backbone, base, reference, wanted, progress, above)
    except M2FError as error:
        raise WeightsError(
            f"{checkpoint.source} holds only what was trained, and its base {reference} is not usable: {error.message}",
            hint=hint,
        ) from error
    if digest(found) != base.sha256:
        raise WeightsError(
            f"{checkpoint.source} was trained from other weights than {reference} holds: their SHA-256 is "
            f"{digest(found)[:12]}…, where {base.sha256[:12]}… is needed.",
            hint=hint,
        )
    return found


def _read(
    backbone: Component,
    base: Base,
    reference: str,
    wanted: Mapping[str, Shape],
    progress: Progress | None,
    above: int,
) -> dict[str, Tensor]:
    """Return wanted tensors of the weights that a training started from, as `training.initialise` reads them."""
    if base.kind == "pretrained":
        options = {**backbone.options, "pretrained": reference}
        state = load_backbone(Component(name=backbone.name, **options), base.shapes, progress=progress)
    else:
        alone = load_alone(reference, base.shapes, partial=True, progress=progress)
        if alone is None:
            # No code of it is run: its tensors go into a network that exists already.
            whole = load(reference, progress=progress, trust_code=True, above=above + 1)
            table = TABLES[whole.format]
            needed = {name for ours in wanted for name in table.find(ours)[0]}
            tensors = {name: x for name, x in spelled(table, whole.tensors).items() if name in needed}
            alone = to_m2f(table, tensors, wanted)
        state = alone
    missing = wanted.keys() - state.keys()
    if missing:
        raise WeightsError(f"{reference} has no {min(missing)}, which is not in the file either.")
    return {name: state[name].float() if state[name].is_floating_point() else state[name] for name in wanted}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, whatever their order."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def left_out(names: Collection[str], taken: Collection[str]) -> set[str]:
    """Return the tensors that a file need not store.

    Args:
        names: tensors that are not trained.
        taken: tensors that were taken from the base as they are.
    """
    return {name for name in names if name in {*taken} and not _RESAMPLED.search(name)}


def base_of(kind: Any, reference: str, state: Mapping[str, Tensor], names: Collection[str]) -> Base:
    """Describe the base of a network.

    Args:
        kind: as in `Base`.
        reference: as in `Base`.
        state: all tensors of the network as the base has them, under plain names.
        names: those that are left out of files.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Base(kind, reference, digest({name: state[name] for name in names}), shapes)

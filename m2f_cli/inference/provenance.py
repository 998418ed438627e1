"""Provenance of results: hashes of the weights and of the configuration that gave them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ..config.schema import Config
from ..errors import DataError
from ..results.shards.base import Provenance
from ..structures import Task
from .base import BaseSegmenter

_CHUNK = 1 << 20  # bytes


def provenance_of(segmenter: BaseSegmenter, model: str, task: Task, thresholds: dict[str, Any]) -> Provenance:
    """Return the origin of the results of a model.

    Args:
        segmenter: the model.
        model: the model as it was named.
        task: the task.
        thresholds: thresholds that differ from the model's own.

    Raises:
        DataError: the exported file that is the model cannot be read.
    """
    network = getattr(segmenter, "model", None)
    weights = _file_hash(Path(segmenter.source)) if network is None else weights_hash(network)
    configuration = configuration_hash(getattr(segmenter, "config", None))
    return Provenance(model, weights, configuration, task, thresholds, segmenter.categories)


def weights_hash(model: torch.nn.Module | None) -> str | None:
    """Return the start of a hash over all parameters and buffers; None for anything but a network."""
    if not isinstance(model, torch.nn.Module):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def configuration_hash(config: Config | None) -> str | None:
    """Return the start of a hash over a resolved configuration; None where there is none."""
    if config is None:
        return None
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _file_hash(path: Path) -> str | None:
    """Return the start of a hash over an exported file; None where the model has no file."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()

"""File of a skipped step, and its replay, which shows where its numbers are not finite."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import presets as config
from ..config.schema import Config
from ..data.loader import Batch
from ..errors import WeightsError
from ..inference.load_network import network_with
from ..loss.criterion import make_criterion
from ..model.pilots import Piloting, piloting_of
from ..runtime import random_state
from ..structures.targets import Target
from ..weights.key_mapping import to_m2f
from ..weights.key_tables import TABLES
from . import resume as state
from .loop import NonFiniteStep, losses_for
from .optimizer import clip_gradients
from .sharding import is_sharded, whole_everywhere


def dump_non_finite_step(path: Path, non_finite: NonFiniteStep, model: torch.nn.Module, settings: Config) -> None:
    """Write everything that repeats a step: weights, batches, configuration.

    Raises:
        M2FError: the file cannot be written.
    """
    batches = [
        {
            "images": b.images_BCHW,
            "names": b.names,
            "targets": [{"labels": t.labels_N, "masks": t.masks_NHW, "owner": t.owner_HW} for t in b.targets],
        }
        for b in non_finite.batches
    ]
    state.write(
        path,
        {
            "iteration": non_finite.iteration,
            "losses": non_finite.losses,
            "batches": batches,
            "model": whole_everywhere(model.state_dict()) if is_sharded(model) else model.state_dict(),
            "config": settings.model_dump_json(),
            "num_classes": model.num_classes,
        },
    )


def look_at(path: Path, device: torch.device, *, trust_code: bool = False) -> list[tuple[str, str]]:
    """Repeat a step in fp32, and return rows (name, finding) of weights, images, layers, losses and gradients.

    Random points (and the noise of pilots) are drawn anew, so a loss may differ a little.

    Args:
        trust_code: allow the configuration in the file, which may be anybody's, to name code.

    Raises:
        WeightsError: the file is not one of `dump_non_finite_step`.
        ConfigError: the file names code and `trust_code` is false.
    """
    tree, settings = _read(path)
    if not trust_code:
        config.refuse_code(settings, str(path))
    state_for = partial(to_m2f, TABLES["m2f"], tree["model"])
    with random_state.kept():
        try:
            model = network_with(settings.model, tree["num_classes"], state_for, trust_code=trust_code)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error.message}", hint=error.hint) from error
        return _rows(tree, settings, model.float().to(device), device)


def _rows(
    tree: dict[str, Any], settings: Config, model: torch.nn.Module, device: torch.device
) -> list[tuple[str, str]]:
    model.train()
    criterion = make_criterion(tree["num_classes"], settings.train.loss, settings.train.class_weights).to(device)
    piloting = piloting_of(settings.model, tree["num_classes"])
    rows = [("skipped in iteration", str(tree["iteration"]))]
    rows += [(f"then {name}", f"{value:.6g}") for name, value in tree["losses"].items()]
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    rows.append(("weights", f"not finite: {', '.join(bad[:4])}" if bad else "finite"))
    for batch in tree["batches"]:
        targets = [target.to(device) for target in batch.targets]
        rows += _repeat(model, criterion, piloting, Batch(batch.images_BCHW.to(device), targets, batch.names))
    rows.append(("gradient norm now", f"{float(clip_gradients(model, 0.0)):.6g}"))
    return rows


def _read(path: Path) -> tuple[dict[str, Any], Config]:
    """Return the tree of `dump_non_finite_step` with its batches as `Batch`, and the configuration."""
    tree = state.read(path)
    try:
        settings = config.parse(json.loads(tree["config"]), str(path))
        classes, weights = tree["num_classes"], tree["model"]
        losses = {str(name): float(loss) for name, loss in tree["losses"].items()}
        batches = [_batch(entry, classes) for entry in tree["batches"]]
        _require(all(isinstance(tensor, torch.Tensor) for tensor in weights.values()), "its weights are no tensors")
        _require(settings.train is not None, "its configuration does not say how to train")
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise WeightsError(f"{path} is not what a run left behind: {type(error).__name__}, {reason}.") from error
    return {**tree, "batches": batches, "losses": losses}, settings


def _batch(entry: dict[str, Any], classes: int) -> Batch:
    images, targets = entry["images"], [Target(t["labels"], t["masks"], t["owner"]) for t in entry["targets"]]
    _require(images.dim() == 4 and images.shape[1] == 3 and images.is_floating_point(), "its images are malformed")
    _require(len(targets) == len(images) == len(entry["names"]), "its images have no names or no targets")
    for target in targets:
        labels, count = target.labels_N, len(target.labels_N)
        _require(labels.dtype == torch.int64 and labels.dim() == 1, "its labels are no numbers")
        _require(not count or 0 <= int(labels.min()) <= int(labels.max()) < classes, "it has labels of no class")
        plane = target.masks_NHW if target.owner_HW is None else target.owner_HW[None]
        fits = plane.dim() == 3 and all(a <= b for a, b in zip(plane.shape[1:], images.shape[2:], strict=True))
        is_whole = not (plane.is_floating_point() or plane.is_complex())
        _require(fits and is_whole, "its masks do not fit its images")
        most = len(plane) == count if target.owner_HW is None else not plane.numel() or int(plane.max()) < count
        _require(most, "it has more masks than labels")
    return Batch(images.float(), targets, list(map(str, entry["names"])))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _repeat(
    model: torch.nn.Module, criterion: torch.nn.Module, piloting: Piloting | None, batch: Batch
) -> list[tuple[str, str]]:
    rows = [("images", ", ".join(batch.names)), ("input", _range(batch.images_BCHW))]
    pilots = None if piloting is None else piloting(batch.targets, batch.padded_size)
    prediction = model(batch.images_BCHW, *([] if pilots is None else [pilots]))
    rows.append(("mask features", _range(prediction.features())))
    for i, layer in enumerate(prediction.layers):
        rows.append((f"layer {i}", f"classes {_range(layer.class_logits_BQK)}, masks {_range(layer.mask_embeds_BQC)}"))
    losses = losses_for(criterion, prediction, pilots, batch)
    rows += [(f"now {name}", f"{loss.item():.6g}") for name, loss in losses.items()]
    sum(losses.values()).backward()
    return rows


def _range(x: torch.Tensor) -> str:
    x = x.detach()
    finite = x.isfinite()
    if not finite.all():
        return f"{int((~finite).sum())} of {x.numel()} not finite"
    return f"{float(x.min()):.4g} to {float(x.max()):.4g}"

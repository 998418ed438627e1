"""Keep a step that was skipped, and repeat it, to see where its numbers break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .. import config
from .. import model as networks
from ..config import Config
from ..data.loader import Batch
from ..errors import WeightsError
from ..loss.criterion import make_criterion
from ..model.piloting import Piloting, piloting_of
from ..runtime import random_state
from ..types import Target
from . import state
from .loop import Trouble, supervise
from .optimizer import clip_gradients


def dump_trouble(path: Path, trouble: Trouble, model: torch.nn.Module, settings: Config) -> None:
    """Write everything to repeat a step: weights, batches, configuration.

    Raises:
        M2FError: it cannot be written.
    """
    batches = [
        {"images": b.images_BCHW, "names": b.names,
         "targets": [{"labels": t.labels_N, "masks": t.masks_NHW, "owner": t.owner_HW} for t in b.targets]}
        for b in trouble.batches
    ]
    state.write(path, {
        "iteration": trouble.iteration, "losses": trouble.losses, "batches": batches, "model": model.state_dict(),
        "config": settings.model_dump_json(), "num_classes": model.num_classes,
    })  # fmt: skip


def look_at(path: Path, device: torch.device, *, trust_code: bool = False) -> list[tuple[str, str]]:
    """Rows (what, finding): weights, pictures, the answers of each layer, the losses, the gradients; all in fp32.

    Random points (and the noise of pilots) are drawn anew, so a loss may come out a little different.

    Args:
        trust_code: whether the configuration in the file, which may be anybody's, may name code.

    Raises:
        WeightsError: the file is not what a run left behind.
        ConfigError: it names code without `trust_code`.
    """
    tree = state.read(path)
    try:
        settings = config.parse(json.loads(tree["config"]), str(path))
        if not trust_code:
            config.refuse_code(settings, str(path))
        with random_state.kept():
            return _rows(tree, settings, device, trust_code)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is not what a run left behind: {type(error).__name__}: {reason}") from error


def _rows(tree: dict[str, Any], settings: Config, device: torch.device, trust_code: bool) -> list[tuple[str, str]]:
    model = networks.build(settings.model, tree["num_classes"], trust_code=trust_code).to(device)
    model.load_state_dict(tree["model"])
    model.train()
    criterion = make_criterion(tree["num_classes"], settings.train.loss, settings.train.class_weights).to(device)
    piloting = piloting_of(settings.model, tree["num_classes"])
    rows = [("skipped in iteration", str(tree["iteration"]))]
    rows += [(f"then {name}", f"{value:.6g}") for name, value in tree["losses"].items()]
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    rows.append(("weights", f"not finite: {', '.join(bad[:4])}" if bad else "finite"))
    for entry in tree["batches"]:
        targets = [Target(t["labels"], t["masks"], t["owner"]).to(device) for t in entry["targets"]]
        batch = Batch(entry["images"].to(device), targets, entry["names"])
        rows += _repeat(model, criterion, piloting, batch)
    rows.append(("gradient norm now", f"{float(clip_gradients(model, 0.0)):.6g}"))
    return rows


def _repeat(
    model: torch.nn.Module, criterion: torch.nn.Module, piloting: Piloting | None, batch: Batch
) -> list[tuple[str, str]]:
    rows = [("pictures", ", ".join(batch.names)), ("input", _range(batch.images_BCHW))]
    pilots = None if piloting is None else piloting(batch.targets, batch.padded_size)
    prediction = model(batch.images_BCHW, *([] if pilots is None else [pilots]))
    rows.append(("mask features", _range(prediction.mask_features_BCHW)))
    for i, layer in enumerate(prediction.layers):
        rows.append((f"layer {i}", f"classes {_range(layer.class_logits_BQK)}, masks {_range(layer.mask_embeds_BQC)}"))
    losses = supervise(criterion, prediction, pilots, batch)
    rows += [(f"now {name}", f"{loss.item():.6g}") for name, loss in losses.items()]
    sum(losses.values()).backward()
    return rows


def _range(x: torch.Tensor) -> str:
    x = x.detach()
    finite = x.isfinite()
    if not finite.all():
        return f"{int((~finite).sum())} of {x.numel()} not finite"
    return f"{float(x.min()):.4g} to {float(x.max()):.4g}"

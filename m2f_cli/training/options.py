"""What a person says about a run beside its configuration; env.json keeps it for resuming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """How to train, beside what the configuration says.

    data: the folder of annotated pictures; None for the preset's own (generated pictures only).
    init: weights to start from; None: the backbone's own ImageNet weights; "random": nothing.
    init_partial: `init` is a file of a backbone alone and may lack a part of it, which starts fresh.
    micro_batch: pictures per forward pass and process; None is at most 2, "auto" as many as the memory holds. The rest
        of `train.batch` is accumulated.
    keep: how many numbered checkpoints are kept beside last and best.
    """

    data: Path | None = None
    init: str | None = None
    init_partial: bool = False
    freeze: tuple[str, ...] = ()
    micro_batch: int | Literal["auto"] | None = None
    workers: int = 0
    device: str = "auto"
    resume: bool = False
    loggers: tuple[str, ...] = ()
    compile: bool = False
    checkpoint_activations: bool = False
    keep: int = 0
    skip_broken: bool = False
    val_pictures: int | None = None

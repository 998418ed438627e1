"""The parts of a training step: the network, its losses and its optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .. import model as networks
from ..config.schema import Config, TrainConfig
from ..loss.criterion import make_criterion
from ..model.pilots import Piloting, piloting_of
from . import sharding
from .ema import EMA
from .optimizer import make_optimizer
from .options import TrainOptions


@dataclass
class Parts:
    """The parts of a training step.

    Attributes:
        config: settings of the training.
        model: the network itself.
        network: `model`, or its wrapper for several processes or compilation.
        criterion: losses of a prediction.
        optimizer: AdamW, see `optimizer.make_optimizer`.
        scaler: gradient scaler, which is active with fp16 alone.
        ema: moving average of the weights. None: no average.
        device: device of the network.
        accumulate: batches of one optimiser step.
        frozen: prefixes of frozen parameters, see `optimizer.freeze`.
        piloting: makes the pilots of MP-Former. None without them.
    """

    config: TrainConfig
    model: nn.Module
    network: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: EMA | None
    device: torch.device
    accumulate: int
    frozen: tuple[str, ...] = ()
    piloting: Piloting | None = None


def make_parts(model: nn.Module, settings: Config, options: TrainOptions, device: torch.device) -> Parts:
    """Return the parts of one process, before it joins the others."""
    config_ = settings.train
    if not options.shard:
        model = model.to(device)
        if device.type == "cpu":  # the layout of its kernels, which would copy the weights in each step
            model = model.to(memory_format=torch.channels_last)
    criterion = make_criterion(model.num_classes, config_.loss, config_.class_weights).to(device)
    if options.checkpoint_activations:
        networks.checkpoint_activations(model)
    if options.shard:
        sharding.shard(model, device)
    scaler = torch.amp.GradScaler(device.type, enabled=config_.precision == "fp16")
    optimizer = make_optimizer(
        model, config_.optimizer, in_stages=config_.schedule.backbone_warmup_iterations is not None
    )
    piloting = piloting_of(settings.model, model.num_classes)
    return Parts(config_, model, model, criterion, optimizer, scaler, None, device, 1, options.freeze, piloting)

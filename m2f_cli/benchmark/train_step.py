"""Training step of `m2f bench --what train`: forward, losses, backward, clipping and AdamW, as `loop.train_step`."""

from __future__ import annotations

from functools import partial

import torch

from ..config.schema import TrainConfig
from ..data.loader import Batch
from ..errors import ConfigError
from ..inference.base import BaseSegmenter
from ..inference.compile import parts_of
from ..loss.criterion import make_criterion
from ..model.pilots import piloting_of
from ..training.loop import losses_of
from ..training.optimizer import clip_gradients, make_optimizer, train_mode
from ..training.parts import Parts
from .case import Case, Workload, training_size
from .stages import Stages
from .synthetic_batch import OBJECTS, training_batch


class Train(Workload):
    """Optimiser step over one batch, in the precision of the case, with all other settings of the preset."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        config = segmenter.config
        if config.train is None or segmenter.model is None:
            raise ConfigError(f"{segmenter.source} cannot be trained.", hint="Use a preset with a section `train`.")
        settings = config.train.model_copy(update={"precision": case.precision})
        self.step_parts = _parts(settings, segmenter)
        self.images = case.batch
        self.parts = {**parts_of(segmenter.model), "loss": self.step_parts.criterion}
        self.make = partial(training_batch, case.batch, classes=len(segmenter.categories), device=segmenter.device)
        self.batch = self.make(size=training_size(case, config))

    def touch(self) -> None:
        self._step(self.make(size=(64, 64)), Stages(self.step_parts.device, live=False))

    def run(self, stages: Stages) -> None:
        self._step(self.batch, stages)

    def _step(self, batch: tuple[torch.Tensor, list], stages: Stages) -> None:
        parts, (images_BCHW, targets) = self.step_parts, batch
        parts.optimizer.zero_grad(set_to_none=True)
        count = torch.full((), float(OBJECTS * len(targets)), device=parts.device)
        losses = losses_of(parts, Batch(images_BCHW, targets, [""] * len(targets)), count)
        with stages("backward"):
            parts.scaler.scale(sum(losses.values())).backward()
        with stages("optimizer"):
            parts.scaler.unscale_(parts.optimizer)
            clip_gradients(parts.model, parts.config.optimizer.clip_norm)
            parts.scaler.step(parts.optimizer)
            parts.scaler.update()


def _parts(settings: TrainConfig, segmenter: BaseSegmenter) -> Parts:
    model, device = segmenter.model.requires_grad_(), torch.device(segmenter.device)
    train_mode(model)
    criterion = make_criterion(model.num_classes, settings.loss, settings.class_weights).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    piloting = piloting_of(segmenter.config.model, model.num_classes)
    optimizer = make_optimizer(model, settings.optimizer)
    return Parts(settings, model, model, criterion, optimizer, scaler, None, device, 1, (), piloting)

"""Length of a run: epochs as iterations, and the reasons to end before the last iteration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..config.schema import LONGEST, Config, TrainConfig
from ..errors import ConfigError
from .resume import RunState

# finished: all iterations are done. early: no evaluation was better for a while. time: the time budget is used up.
# signal: somebody stopped the run.
Ended = Literal["finished", "early", "time", "signal"]


# --- epochs -----------------------------------------------------------------------------------------------------------


def with_iterations(settings: Config, images: int, notes: list[str]) -> Config:
    """Return the configuration with iterations in place of epochs, if it has epochs. A remark goes to `notes`.

    The steps of the schedule keep their shares of the training.

    Args:
        images: number of training images.

    Raises:
        ConfigError: there are too many iterations.
    """
    train = settings.train
    if train is None or train.epochs is None:
        return settings
    iterations = math.ceil(round(train.epochs * images / train.batch, 6))  # rounded: 0.1 x 30 is 3.0000000000000004
    if not 1 <= iterations <= LONGEST:
        raise ConfigError(
            f"train.epochs = {train.epochs:g} are {iterations:,} iterations for {images} images.",
            hint=f"1 to {LONGEST:,} are possible.",
        )
    ratio = iterations / train.iterations
    steps = tuple(round(step * ratio) for step in train.schedule.steps)
    schedule = train.schedule.model_copy(update={"steps": steps})
    notes.append(_told(train, images, iterations, steps))
    changes = {"iterations": iterations, "epochs": None, "schedule": schedule}
    return settings.model_copy(update={"train": train.model_copy(update=changes)})


def _told(train: TrainConfig, images: int, iterations: int, steps: tuple[int, ...]) -> str:
    unit = "epoch" if train.epochs == 1 else "epochs"
    text = f"{train.epochs:g} {unit} of {images} images in batches of {train.batch} are {iterations} iterations."
    if train.schedule.name == "step" and steps:
        before, after = (", ".join(map(str, each)) for each in (train.schedule.steps, steps))
        text += f" The steps of the schedule are scaled alike, from {before} (of {train.iterations}) to {after}."
    warmup = train.schedule.warmup_iterations + (train.schedule.backbone_warmup_iterations or 0)
    if warmup >= iterations:
        text += f" The warm-up takes {warmup} iterations, and so all of them."
    return text


# --- patience ---------------------------------------------------------------------------------------------------------


def evaluations_since_best(state: RunState, train: TrainConfig) -> int:
    """Return the number of evaluations after the best one; all if none had a figure."""
    every = train.eval_every
    return state.evaluated // every - state.best.get("iteration", 0) // every if every else 0


def is_out_of_patience(state: RunState, train: TrainConfig) -> bool:
    """Return True if the last `patience` evaluations were not better than the best before them."""
    return train.patience is not None and evaluations_since_best(state, train) >= train.patience


def is_evaluation_due(done: int, train: TrainConfig) -> bool:
    """Return True if the network is evaluated after `done` iterations."""
    return done >= train.iterations or bool(train.eval_every and done % train.eval_every == 0)


def evaluations(train: TrainConfig) -> int:
    """Return the number of evaluations of a whole training."""
    regular, rest = divmod(train.iterations, train.eval_every) if train.eval_every else (0, 1)
    return regular + (rest > 0)


# --- time -------------------------------------------------------------------------------------------------------------


@dataclass
class TimeBudget:
    """Time that a run may take in this process, from now on.

    Attributes:
        seconds: the whole time. None: no limit.
        clock: gives seconds.
        evaluation: seconds of the last evaluation, which are kept free for the next one.
    """

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    evaluation: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    def is_used_up(self, *, evaluates: bool) -> bool:
        """Return True if no step should begin.

        Args:
            evaluates: an evaluation follows the step.
        """
        if self.seconds is None:
            return False
        left = self.seconds - (self.clock() - self.began)
        return left <= (self.evaluation if evaluates else 0.0)

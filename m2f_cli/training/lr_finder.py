"""Learning-rate finder: a short sweep from low to high rates, from the initial weights of a training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..config.schema import Config
from ..data.loader import Batch
from ..errors import M2FError
from ..results.writers import write_json
from ..runtime import distributed, random_state
from ..runtime.devices import choose_device
from ..runtime.locks import locked
from . import resume as state
from .folder import LR_FINDER as FILES
from .loop import apply, to_host, train_step
from .optimizer import set_learning_rate, train_mode
from .options import TrainOptions
from .parts import Parts
from .prepare import Listener, prepare
from .visualise import draw_sweep

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
NEIGHBOURS = 2  # steps on each side that a smoothed loss includes
DIVERGED = 2.0  # factor of the least smoothed loss at which the sweep ends
MARGIN = 10.0  # factor between the rate of the least loss and the suggestion
KEY = "train.optimizer.learning_rate"


@dataclass(frozen=True)
class Tried:
    """A step of the sweep.

    Attributes:
        number: number of the step, from 0.
        rate: learning rate of the step.
        loss: loss before the step.
    """

    number: int
    rate: float
    loss: float


@dataclass(frozen=True)
class Found:
    """Result of a sweep.

    Attributes:
        suggested: suggested learning rate, with two digits.
        rates: learning rate of each step.
        losses: loss before each step.
        smoothed: centred means of the losses.
        diverged: True if the sweep ended because the loss diverged.
    """

    suggested: float
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool


def find_learning_rate(
    parts: Parts,
    batches: Iterator[Batch],
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
    on_step: Callable[[Tried], None] = lambda tried: None,
) -> Found:
    """Raise the learning rate exponentially from step to step until the loss diverges (Smith 2017, arXiv 1506.01186).

    The suggestion is a tenth of the rate at which the smoothed loss is least, because training is about to diverge
    there. Relative rates of the groups stay. Afterwards weights, optimiser and random numbers are as before.

    Raises:
        M2FError: the loss does not fall at any rate.
    """
    tried: list[Tried] = []
    with state.unchanged(parts):
        train_mode(parts.model, parts.frozen)
        for number in range(steps):
            rate = lowest * (highest / lowest) ** (number / max(1, steps - 1))
            set_learning_rate(parts.optimizer, rate)
            losses, norm = to_host(*train_step(parts, list(itertools.islice(batches, parts.accumulate))))
            loss = sum(losses.values())
            diverged = apply(parts, losses, norm) is None or _has_diverged([*(t.loss for t in tried), loss])
            if math.isfinite(loss):
                tried.append(Tried(number, rate, loss))
                on_step(tried[-1])
            if diverged:
                break
    return _conclude(tried, diverged)


def _conclude(tried: list[Tried], diverged: bool) -> Found:
    rates, losses = [t.rate for t in tried], [t.loss for t in tried]
    smoothed = smooth(losses)
    least = smoothed.index(min(smoothed)) if smoothed else 0
    if least == 0:
        raise M2FError(
            f"The loss does not fall at any of {len(tried)} learning rates from {LOWEST:.0e} on: nothing is learnt.",
            hint="Look at the images in samples/ of a short run, and at train.optimizer.clip_norm.",
        )
    return Found(float(f"{rates[least] / MARGIN:.1e}"), rates, losses, smoothed, diverged)


def smooth(losses: list[float]) -> list[float]:
    """Return the mean of each loss and its neighbours on both sides. A mean of past losses alone would lag behind."""
    windows = (losses[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def _has_diverged(losses: list[float]) -> bool:
    width = 2 * NEIGHBOURS + 1
    means = [sum(losses[i : i + width]) / width for i in range(len(losses) - width + 1)]
    return bool(means) and not means[-1] <= DIVERGED * min(means)


def search(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    listener: Listener | None = None,
    on_step: Callable[[Tried], None] = lambda tried: None,
) -> Found:
    """Find the learning rate of a run that is not started yet, with its data, initial weights and batch.

    The sweep has at most as many steps as the run has iterations. Only lr_finder.json and lr_finder.png are written
    into `folder`, so that a run may be started there afterwards.

    Raises:
        M2FError: the run could not be started, or the loss does not fall.
    """
    listener = listener or Listener()
    with random_state.kept(), ExitStack() as stack, distributed.group(choose_device(options.device)) as device:
        distributed.on_main(lambda: stack.enter_context(locked(folder, "A training")))
        run = prepare(settings, folder, options, device, listener)
        listener.on_start(run)
        steps = min(STEPS, run.settings.train.iterations)
        result = find_learning_rate(run.parts, iter(run.loader), steps=steps, on_step=on_step)
        if distributed.rank() == 0:
            write_json(folder / FILES[0], {"schema_version": 1, **vars(result)})
            draw_sweep(result.rates, result.smoothed, result.suggested, folder / FILES[1])
    return result

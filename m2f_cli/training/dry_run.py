"""Dry run of a training: all is prepared, a few steps are measured, and nothing is written."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..dataset_tools.check.glimpse import Glimpse, evenly, glimpse
from ..errors import ConfigError
from ..evaluation.evaluate import default_metrics, evaluate
from ..inference.segmenter import Segmenter
from ..runtime import distributed, random_state
from ..runtime.devices import choose_device
from ..runtime.memory import Memory
from .data import Splits
from .folder import refuse_used
from .length import evaluations
from .loop import apply, to_host, train_step
from .optimizer import follow_schedule, train_mode
from .options import TrainOptions
from .prepare import CHECKED, Listener, Run, prepare
from .rehearsal import refuse_unwritable

STEPS = 3
EVALUATED = 3  # images, likewise after a first one


@dataclass(frozen=True)
class DryRun:
    """Outlook on a training.

    Attributes:
        settings: the configuration as the run would have it.
        train: glimpse of the images to train on.
        val: glimpse of the images to evaluate on. None: there are none.
        problems: what would stop the training or spoil it, as far as it was seen.
        parameters: (part, trainable, all) numbers of each part.
        step_seconds: median of the measured steps.
        evaluation_seconds: estimate of one evaluation.
        evaluations: number of evaluations.
        memory: as `Memory.growth` gives it.
    """

    settings: Config
    train: Glimpse
    val: Glimpse | None
    problems: tuple[str, ...]
    parameters: tuple[tuple[str, int, int], ...]
    step_seconds: float
    evaluation_seconds: float
    evaluations: int
    memory: dict[str, float | None]

    @property
    def seconds(self) -> float:
        """Estimate of the whole training, without checkpoints."""
        return self.settings.train.iterations * self.step_seconds + self.evaluations * self.evaluation_seconds


def dry_run(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    listener: Listener | None = None,
    data: Splits | None = None,
    clock: Callable[[], float] = time.perf_counter,
    steps: int = STEPS,
) -> DryRun:
    """Prepare a training, measure a few of its steps, and forget it.

    Args:
        folder: folder that the run would have. It is not made.
        steps: steps that are measured, after a first one that is slower.
        data: see `prepare`.
        clock: gives seconds.

    Raises:
        M2FError: the run could not be started, for the reason that it would give.
    """
    if options.resume:
        raise ConfigError("--dry-run looks at a new run.", hint="Leave out --resume.")
    listener = listener or Listener()
    with random_state.kept(), distributed.group(choose_device(options.device)) as device:
        distributed.on_main(lambda: _refuse_folder(folder))
        run = prepare(settings, folder, options, device, listener, data)
        run.parts.model.feature_cache = None  # it would write files
        listener.on_start(run)
        train, val = _glimpse(run.train_data), None if run.val_data is None else _glimpse(run.val_data)
        memory = Memory(device)
        step_seconds, problems = _measured_steps(run, clock, steps)
        evaluation_seconds = 0.0 if val is None else _measured_evaluation(run, clock)
    seen = (*train.problems, *(val.problems if val is not None else ()), *problems)
    return DryRun(
        run.settings,
        train,
        val,
        seen,
        tuple(run.trainable()),
        step_seconds,
        evaluation_seconds,
        0 if val is None else evaluations(run.settings.train),
        memory.growth(),
    )


def _refuse_folder(folder: Path) -> None:
    refuse_used(folder)
    refuse_unwritable(folder)


def _glimpse(data: Any) -> Glimpse:
    return glimpse(data.records, len(data.categories), CHECKED)


def _measured_steps(run: Run, clock: Callable[[], float], steps: int) -> tuple[float, list[str]]:
    """Train for a few steps. Return the median of their seconds, and problems."""
    parts, train = run.parts, run.settings.train
    seconds, problems = [], []
    train_mode(parts.model, parts.frozen)
    with closing(iter(run.loader)) as batches:
        for number in range(1 + steps):
            began = clock()
            chosen = list(itertools.islice(batches, parts.accumulate))
            problems += [text for batch in chosen for text in batch.skipped]
            follow_schedule(parts.optimizer, number, train)
            losses, norm = to_host(*train_step(parts, chosen))
            apply(parts, losses, norm)
            seconds.append(clock() - began)
            if not math.isfinite(sum(losses.values())):
                problems.append(f"The loss of step {number + 1} is not finite.")
    return statistics.median(seconds[1:]), problems


def _measured_evaluation(run: Run, clock: Callable[[], float]) -> float:
    """Evaluate on a few images. Return the seconds that all images would take."""
    categories, records = run.val_data.categories, run.val_data.records
    segmenter = Segmenter(run.parts.model, run.settings, categories, device=run.parts.device, source=run.settings.name)
    metrics = default_metrics(run.settings.task, categories)
    evaluate(segmenter, records[:1], metrics)
    few = evenly(records, EVALUATED)
    began = clock()
    evaluate(segmenter, few, metrics)
    return (clock() - began) / len(few) * len(records) / distributed.world_size()

"""A training run from start to end: the loop of loop.py, with evaluations and checkpoints when they are due."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.run_folder import METRICS, RESULTS
from ..config.schema import Config
from ..data.loader import of_worker
from ..errors import M2FError
from ..evaluation.evaluate import EvalResult
from ..runtime import distributed, random_state
from ..runtime.devices import choose_device
from ..runtime.files import write_json, writing_to
from ..runtime.signals import Asked, asked_to_stop
from ..storage.uris import place_of
from .data import Splits
from .folder import claim, write_records
from .length import Ended, TimeBudget, evaluations_since_best, is_evaluation_due, is_out_of_patience
from .loggers import Logger, check_loggers, make_loggers
from .loop import NonFiniteStep, StepRecord
from .loop import train as train_on
from .options import TrainOptions
from .prepare import Listener, Run, prepare
from .replay import dump_non_finite_step
from .visualise import draw_curves


@dataclass
class TrainOutcome:
    """Outcome of a run.

    Attributes:
        folder: folder of the run.
        iteration: iterations that are done.
        iterations: iterations of the whole run.
        best: best value of the headline metric, with its name, its iteration and the figures of each class (metric →
            class → figure). Empty without an evaluation.
        skipped: number of steps that were skipped because a number was not finite.
        seconds: duration of the training in this process.
        stopped: signal that ended the run early. None: there was none.
        ended: finished (all iterations), early (train.patience), time (the time budget) or signal.
    """

    folder: Path
    iteration: int
    iterations: int
    best: dict[str, Any]
    skipped: int
    seconds: float
    stopped: str | None = None
    ended: Ended = "finished"


def train(
    config: Config,
    data: str | Path | Splits | None = None,
    out: str | Path = "runs/train",
    *,
    listener: Listener | None = None,
    **options: Any,
) -> TrainOutcome:
    """Train a model as a configuration says, and write the run to a folder.

    Args:
        config: from `load_config`.
        data: a folder of annotated images or the URI of one in a store, a pair of data sets (to train on, to
            evaluate on or None), or None for the generated images of the preset.
        out: the folder of the run. It must be new, unless `resume=True`.
        listener: receives what the run does; the default stays silent.
        options: fields of `training.options.TrainOptions`, such as `init="random"`, `device="cuda"` or `resume=True`.

    Raises:
        M2FError: anything that cannot be done, in one sentence.
    """
    splits = data if isinstance(data, tuple) else None
    folder = None if data is None or splits else place_of(data)
    return start(config, Path(out), TrainOptions(data=folder, **options), listener, data=splits)


def start(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    listener: Listener | None = None,
    command: Sequence[str] = (),
    data: Splits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainOutcome:
    """Train in this process, which under torchrun is one of several.

    Args:
        folder: folder of the run. It must be new, or one to resume.
        command: command line of the user, for env.json.
        data: see `prepare`. A resumed run needs it again.
        clock: gives the seconds of `options.time_budget`.

    Raises:
        M2FError: anything that cannot be done, in one sentence.
    """
    budget = TimeBudget(options.time_budget, clock)
    check_loggers(options.loggers)
    listener = listener or Listener()
    device = choose_device(options.device)
    # The order matters: the folder is unlocked and the caller's random numbers are restored after everything else.
    with random_state.kept(), contextlib.ExitStack() as stack, distributed.group(device) as device:
        settings = distributed.on_main(lambda: claim(settings, folder, options, stack))
        run = prepare(settings, folder, options, device, listener, data)
        write_records(run, command)
        listener.on_start(run)
        return execute(run, listener, budget)


class _Left(Exception):
    """Signal during an evaluation, which a resumed run repeats."""


@dataclass
class _Duties:
    """Callbacks of the loop: log, evaluate, save."""

    run: Run
    listener: Listener
    asked: Asked
    loggers: Sequence[Logger]
    budget: TimeBudget = field(default_factory=TimeBudget)

    def is_over(self) -> bool:
        """Return True if the run ends before the next step."""
        run, train_ = self.run, self.run.settings.train
        evaluates = run.val_data is not None and is_evaluation_due(run.state.iteration + 1, train_)
        is_asked = self.asked.name is not None
        return is_asked or is_out_of_patience(run.state, train_) or self.budget.is_used_up(evaluates=evaluates)

    def on_step(self, step: StepRecord) -> None:
        values = {
            **step.losses,
            "loss": step.total,
            "lr": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "images_per_second": step.images / step.seconds,
            "data_share": step.data_seconds / step.seconds,
        }
        self.run.history.append({"iteration": step.iteration, "loss": step.total})
        for logger in self.loggers:
            logger.log("train", step.iteration, values)
        self.listener.on_step(step)

    def on_non_finite_step(self, non_finite: NonFiniteStep) -> None:
        run = self.run
        path = run.folder / f"trouble_{non_finite.iteration:07d}_rank{distributed.rank()}.pt"
        dump_non_finite_step(path, non_finite, run.parts.model, run.settings)
        self.listener.on_note(f"A step was skipped: {non_finite}. To look at it: m2f train --replay {path}")

    def on_due(self, done: int) -> None:
        """Evaluate and save, if either is due after `done` iterations."""
        run, train_ = self.run, self.run.settings.train
        last = done >= train_.iterations
        is_to_be_evaluated, is_to_be_saved = _is_to_be_evaluated(run), last or done % train_.checkpoint_every == 0
        if run.saved is None and (is_to_be_evaluated or (is_to_be_saved and run.options.keep)):
            run.save()  # a folder with weights must have the state that resumes it
        elif is_to_be_evaluated and run.options.shard:
            run.save()  # whoever leaves an evaluation leaves alone
        if is_to_be_evaluated:
            began = self.budget.clock()
            self.evaluate()
            self.budget.evaluation = self.budget.clock() - began
        if is_to_be_saved or is_out_of_patience(run.state, train_):
            if run.options.keep:  # first, because a resumed run does not repeat it
                run.save_weights(f"iteration_{run.state.iteration:07d}")
            run.save()
            _forget_old(run)

    def evaluate(self) -> None:
        run = self.run
        result = run.evaluate(self._leave_if_asked)
        if result is not None:
            name = run.best_metric
            value = result.figures[name]
            if value == value and value > run.state.best.get("value", float("-inf")):
                best = {"metric": name, "value": value, "iteration": run.state.iteration}
                run.state.best = {**best, "per_class": class_figures(result)}
                run.save_weights("best")
            for logger in self.loggers:
                logger.log("val", run.state.iteration, {k: v for k, v in result.figures.items() if v == v})
        run.state.evaluated = run.state.iteration
        if result is not None:
            self.listener.on_evaluated(run.state.iteration, result)

    def _leave_if_asked(self, _: Any) -> None:
        # Only in the first process. The others may wait for each other, and end with it.
        if distributed.rank() == 0 and self.asked.name is not None:
            raise _Left


def class_figures(result: EvalResult) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the figures of each class by metric as plain numbers; None in place of NaN. Other values are left out."""
    return {
        metric: {
            name: {
                key: None if value != value else value if isinstance(value, int) else float(value)
                for key, value in row.items()
                if isinstance(value, (int, float))
            }
            for name, row in figures["per_class"].items()
        }
        for metric, figures in result.metrics.items()
        if "per_class" in figures
    }


def execute(run: Run, listener: Listener, budget: TimeBudget) -> TrainOutcome:
    """Train from the state of a run to its end, or until something ends it before."""
    began = time.perf_counter()
    loggers = _loggers(run)
    with asked_to_stop() as asked:
        asked.is_busy = lambda: run.state.doing == "changing"
        try:
            is_finished = _train(run, _Duties(run, listener, asked, loggers, budget))
        finally:
            for logger in loggers:
                logger.close()
    ended = _ended(run, asked, budget, is_finished)
    outcome = TrainOutcome(
        run.folder,
        run.state.iteration,
        run.settings.train.iterations,
        run.state.best,
        run.state.skipped,
        time.perf_counter() - began,
        asked.name if ended == "signal" else None,
        ended,
    )
    if distributed.rank() == 0:
        _tell_end(outcome, run, listener)
        draw_curves(run.folder / METRICS, run.folder / "curves.png")
        summary = {"schema_version": 1, **{k: str(v) if k == "folder" else v for k, v in vars(outcome).items()}}
        write_json(run.folder / RESULTS, summary, indent=2)
    return outcome


def _ended(run: Run, asked: Asked, budget: TimeBudget, is_finished: bool) -> Ended:
    if is_finished:
        return "finished"
    if is_out_of_patience(run.state, run.settings.train):
        return "early"
    return "time" if budget.seconds is not None and asked.name is None else "signal"


def _tell_end(outcome: TrainOutcome, run: Run, listener: Listener) -> None:
    done = f"after {outcome.iteration} of {outcome.iterations} iterations"
    if outcome.ended == "time":
        listener.on_note(f"The time budget is used up {done}. Everything is saved.")
    if outcome.ended == "early":
        count = evaluations_since_best(run.state, run.settings.train)
        since = f"in the last {count} evaluations" if count > 1 else "in the last evaluation"
        listener.on_note(f"Stopped early {done}: {run.best_metric} was not better {since}.")
    if outcome.ended == "early" and run.options.resume and not run.history:
        again = shlex.join(["m2f", "train", "--init", str(run.folder), "--out", "NEW_RUN"])
        listener.on_note(f"This run is over. To train its weights on: {again}, with the other options of this run.")


def _loggers(run: Run) -> list[Logger]:
    if distributed.rank() != 0:
        return []
    tree, now = run.settings.model_dump(mode="json"), run.state
    return make_loggers(run.options.loggers, run.folder, tree, from_iteration=now.iteration, evaluated=now.evaluated)


def _train(run: Run, duties: _Duties) -> bool:
    """Run the loop, and save the finished iterations however it ends. Return False if it was asked to stop."""
    asked = duties.asked
    try:
        _forget_old(run)  # a killed run may have left some
        with contextlib.closing(iter(run.loader)) as batches:
            if run.state.iteration and _is_to_be_evaluated(run):  # the run was stopped during that evaluation
                duties.on_due(run.state.iteration)
            ended = train_on(
                run.parts,
                batches,
                run.state,
                on_step=duties.on_step,
                on_non_finite_step=duties.on_non_finite_step,
                on_due=duties.on_due,
                should_stop=duties.is_over,
            )
        if not ended and not is_out_of_patience(run.state, run.settings.train):  # which on_due has saved
            run.save()
        return ended
    except _Left:
        if not run.options.shard:  # then on_due has saved it
            run.save()
        return False
    except BaseException as error:
        asked.is_busy = lambda: True
        rescue(run, duties.listener)
        if distributed.is_active() and asked.name is not None and isinstance(error, RuntimeError):
            return False  # another process left first, which broke their communication
        if (failure := of_worker(error)) is not None:
            raise failure from error
        raise


def rescue(run: Run, listener: Listener) -> None:
    """Save the state after the last finished step, and print how to resume. Callers report the error itself."""
    if distributed.rank() != 0 or not run.state.iteration:
        return
    reason = "an error came while the weights were changing" if run.state.doing == "changing" else ""
    if run.options.shard and not reason and run.saved != run.state.iteration:
        reason = "with --shard no process has all of them"
    if not reason and run.saved != run.state.iteration:
        try:
            run.save()
        except (M2FError, RuntimeError) as error:  # RuntimeError: a broken GPU
            reason = str(error)
    lost = "" if run.saved == run.state.iteration else f" The iterations after that could not be saved: {reason}"
    if run.saved is None:
        text = f"Nothing could be saved: {reason}"
    else:
        again = shlex.join(["m2f", "train", "--out", str(run.folder), "--resume"])
        text = f"Saved after {run.saved} iterations. To go on: {again}.{lost}"
    with contextlib.suppress(OSError):  # a terminal that is closed
        listener.on_note(text)


def _is_to_be_evaluated(run: Run) -> bool:
    """Return True if an evaluation is due after the present iteration and was not done."""
    done = run.state.iteration
    return is_evaluation_due(done, run.settings.train) and run.state.evaluated != done


def _forget_old(run: Run) -> None:
    """Remove numbered weights that are not to be kept."""
    if not run.options.keep or distributed.rank() != 0:
        return
    for old in sorted(run.checkpoints.glob("iteration_*.safetensors"))[: -run.options.keep]:
        with writing_to(old):
            old.unlink(missing_ok=True)

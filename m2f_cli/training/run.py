"""A training run: its folder, its parts, what happens when it is due. The loop itself is in loop.py."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__, config, weights
from .. import model as networks
from ..config import Config
from ..data.checks import check
from ..data.formats.base import NoTask
from ..data.loader import Batch, Loader, training_loader
from ..data.records import DataSet
from ..errors import ConfigError, Unreachable
from ..inference.evaluate import EvalResult, default_metrics, evaluate, headline
from ..inference.initialise import initialise
from ..inference.segmenter import Segmenter, choose_device
from ..loss.criterion import make_criterion
from ..model.piloting import piloting_of
from . import batch_size, distributed, state
from .data import Splits, open_splits, same_classes, with_task_of
from .ema import EMA
from .logs import check_loggers, make_loggers
from .loop import Parts, Step, Trouble, train
from .optimizer import freeze, make_optimizer, train_mode, trainable_table
from .options import Options
from .pictures import draw_batch, draw_curves, draw_results
from .replay import dump_trouble
from .signals import asked_to_stop
from .state import RunState

CHECKED = 50  # pictures that are looked at for classic mistakes before training starts
CONFIG, ENVIRONMENT, RESULTS = "config.yaml", "env.json", "results.json"
LR_FINDER = ("lr_finder.json", "lr_finder.png")  # may lie in a folder before its run


@dataclass
class Outcome:
    """How a run ended. `stopped` says why it ended early, if it did."""

    folder: Path
    iteration: int
    iterations: int
    best: dict[str, Any]
    skipped: int
    seconds: float
    stopped: str | None = None


@dataclass
class Listener:
    """Whom a run tells what it does; each takes plain records. The default tells nobody."""

    on_start: Callable[[Run], None] = lambda run: None
    on_step: Callable[[Step], None] = lambda step: None
    on_evaluated: Callable[[int, EvalResult], None] = lambda iteration, result: None
    on_note: Callable[[str], None] = lambda text: None
    on_download: Callable[[Any], None] | None = None


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run that is ready to go on from `state`."""

    folder: Path
    settings: Config
    options: Options
    train_data: DataSet
    val_data: DataSet | None
    parts: Parts
    loader: Loader
    state: RunState
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def trainable(self) -> list[tuple[str, int, int]]:
        return trainable_table(self.parts.model)

    # -- saving --

    def save(self) -> None:
        """Write everything that resuming needs, and the weights for use. Only the first process writes."""
        if distributed.rank() == 0:
            done = {"iteration": self.state.iteration, "skipped": self.state.skipped, "best": self.state.best}
            state.write(self.checkpoints / state.RESUME, {**done, **state.snapshot(self.parts)})
            self.save_weights("last")

    def save_weights(self, name: str) -> Path:
        """A checkpoint that describes itself; averaged weights where there is an average."""
        tensors = self.parts.model.state_dict() if self.parts.ema is None else self.parts.ema.average
        return weights.save(
            self.checkpoints / f"{name}.safetensors", tensors, self.settings, self.train_data.categories
        )

    def restore(self) -> None:
        """Go back to where `save` was."""
        tree = state.read_run(self.checkpoints / state.RESUME)
        state.restore(self.parts, tree)
        if distributed.rank() == 0:
            state.set_random_state(tree["random"], self.parts.device)
        else:  # only the first process's is kept; the others must not draw the same numbers
            torch.manual_seed(hash((self.settings.train.seed, tree["iteration"], distributed.rank())) % 2**63)
        self.state = RunState(tree["iteration"], tree["skipped"], tree["best"])

    # -- evaluating --

    def evaluate(self) -> EvalResult | None:
        """The figures of the network as it stands, on the val split; the network goes on training afterwards."""
        if self.val_data is None:
            return None
        model = self.parts.model
        averaged = self.parts.ema.applied(model) if self.parts.ema is not None else _as_it_is()
        with averaged:
            segmenter = Segmenter(
                model, self.settings, self.val_data.categories, device=self.parts.device, source=self.settings.name
            )
            metrics = default_metrics(self.settings.task, self.val_data.categories)
            result = evaluate(segmenter, self.val_data.records, metrics, distributed=True)
            if distributed.rank() == 0:
                folder = self.folder / "val" / f"{self.state.iteration:07d}"
                draw_results(segmenter, self.val_data.records[:4], self.settings.task, folder)
        train_mode(model, self.parts.frozen)
        return result


def prepare(
    settings: Config, folder: Path, options: Options, device: torch.device, listener: Listener,
    data: Splits | None = None,
) -> Run:
    """Make all parts of a run; with `options.resume`, as they were.

    Args:
        data: what to train and evaluate on, instead of what `options.data` or the preset names.

    Raises:
        ConfigError, DataError, WeightsError: something does not fit; nothing has been written then.
    """
    if settings.train is None:
        raise ConfigError(f"The preset {settings.name} does not say how to train.", hint="Choose another preset.")
    notes: list[str] = []
    if device.type == "cpu" and settings.train.precision == "fp16":
        notes.append("fp16 is for GPUs and many times slower on a CPU: training is in fp32.")
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"precision": "fp32"})})
    torch.manual_seed(settings.train.seed + distributed.rank())
    is_own = data is not None or options.data is not None
    try:
        train_data, val_data = data or open_splits(settings, options.data, options.val_pictures, notes)
    except NoTask as error:
        settings = with_task_of(settings, error, notes)
        train_data, val_data = open_splits(settings, options.data, options.val_pictures, notes)
    notes += [*train_data.notes]
    same_classes(train_data, val_data)
    if is_own and not options.resume and distributed.rank() == 0:
        notes += [f"{w.message} {w.hint}" for w in check(train_data, CHECKED, against=val_data)]
    if is_own:
        described = settings.data.model_copy(update={"dataset": train_data.name, "classes": "checkpoint"})
        settings = settings.model_copy(update={"data": described})
    model = networks.build(settings.model, len(train_data.categories))
    if not options.resume:
        notes += _initialise(model, settings, train_data, options, listener)
    if options.freeze:
        freeze(model, options.freeze)
    parts = _parts(model, settings, options, device)
    make_loader = functools.partial(
        training_loader, settings, train_data, rank=distributed.rank(), world=distributed.world_size(),
        on_error="skip" if options.skip_broken else "raise", pin=device.type == "cuda",
    )
    if options.micro_batch == "auto":
        options = _measure(parts, options, lambda size: iter(make_loader(batch=size)), notes)
    parts = _complete(parts, options)
    run = Run(folder, settings, options, train_data, val_data, parts, None, RunState(), notes)
    if options.resume:
        run.restore()
    micro = settings.train.batch // (parts.accumulate * distributed.world_size())
    start_at = run.state.iteration * parts.accumulate
    run.loader = make_loader(batch=micro, workers=options.workers, start=start_at)
    return run


def _initialise(
    model: nn.Module, settings: Config, data: DataSet, options: Options, listener: Listener
) -> list[str]:
    if options.init == "random":
        return ["The network starts from random numbers."]
    try:
        report = initialise(
            model, settings, data.categories, init=options.init, partial=options.init_partial,
            progress=listener.on_download,
        )
    except Unreachable as error:
        if options.init is not None:
            raise
        # A machine without network can still train; but nobody should find out at the end that it was from nothing.
        return [
            "THE BACKBONE STARTS FROM RANDOM NUMBERS, not from ImageNet as published: expect clearly lower figures. "
            f"{error} Or say --init random to be content with that, --init REF for other weights."
        ]
    return list(report.notes)


def _parts(model: nn.Module, settings: Config, options: Options, device: torch.device) -> Parts:
    """What one process alone works with; see `_complete`."""
    config_ = settings.train
    model = model.to(device)
    criterion = make_criterion(model.num_classes, config_.loss, config_.class_weights).to(device)
    if options.checkpoint_activations:
        networks.checkpoint_activations(model)
    scaler = torch.amp.GradScaler(device.type, enabled=config_.precision == "fp16")
    optimizer = make_optimizer(model, config_.optimizer)
    piloting = piloting_of(settings.model, model.num_classes)
    return Parts(config_, model, model, criterion, optimizer, scaler, None, device, 1, options.freeze, piloting)


def _measure(
    parts: Parts, options: Options, batches: Callable[[int], Iterator[Batch]], notes: list[str]
) -> Options:
    """The options with the number of pictures that the memory holds instead of "auto"."""
    own = batch_size.share_of(parts.config.batch, distributed.world_size())
    chosen = batch_size.measured_micro_batch(parts, own, batches)
    notes.append(f"--batch auto: {chosen} of the {own} pictures of a process and step fit into memory at once.")
    return dataclasses.replace(options, micro_batch=chosen)


def _complete(parts: Parts, options: Options) -> Parts:
    """Join the other processes. The average begins afterwards, with the numbers of the first process."""
    network = distributed.wrap(parts.model, parts.device)
    if options.compile:
        network = torch.compile(network)
    ema = EMA(parts.model, parts.config.ema_decay) if parts.config.ema_decay else None
    accumulate = batch_size.accumulation(parts.config.batch, distributed.world_size(), options.micro_batch)
    return dataclasses.replace(parts, network=network, ema=ema, accumulate=accumulate)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


# --- from start to end ------------------------------------------------------------------------------------------------


def start(
    settings: Config, folder: Path, options: Options, listener: Listener | None = None, command: Sequence[str] = (),
    data: Splits | None = None,
) -> Outcome:
    """Train, in this process or, under torchrun, in this one of several.

    Args:
        folder: of the run. It must be new, or one to resume.
        command: what the user typed, for the record.
        data: see `prepare`; a run that is resumed is given it again.

    Raises:
        M2FError: anything that cannot be done, in one sentence.
    """
    check_loggers(options.loggers)
    listener = listener or Listener()
    with distributed.group(choose_device(options.device)) as device:
        settings = _claim(settings, folder, options)
        run = prepare(settings, folder, options, device, listener, data)
        _write_records(run, command)
        listener.on_start(run)
        return _execute(run, listener)


def _claim(settings: Config, folder: Path, options: Options) -> Config:
    """The configuration of the run: the folder's own when it is resumed."""
    if options.resume:
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder} is no run that could be resumed.", hint="Start without --resume.")
        return config.load(folder / CONFIG)
    taken = folder.exists() and any(path.name not in LR_FINDER for path in folder.iterdir())
    if distributed.from_main(taken):
        raise ConfigError(f"The run {folder} exists already.", hint="Use --resume to go on, or another --out.")
    return settings


def _write_records(run: Run, command: Sequence[str]) -> None:
    if distributed.rank() != 0:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / CONFIG).write_text(config.dump(run.settings), encoding="utf-8")
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(run.options).items()}
    environment = {
        "m2f": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "machine": platform.platform(), "device": str(run.parts.device), "processes": distributed.world_size(),
        "command": list(command), "options": options, "notes": run.notes,
    }
    (run.folder / ENVIRONMENT).write_text(json.dumps(environment, indent=2), encoding="utf-8")
    if not run.options.resume:
        draw_batch(run.train_data, run.settings, run.folder / "samples")


def _execute(run: Run, listener: Listener) -> Outcome:
    began = time.perf_counter()
    main = distributed.rank() == 0
    loggers = []
    if main:
        tree = run.settings.model_dump(mode="json")
        loggers = make_loggers(run.options.loggers, run.folder, tree, from_iteration=run.state.iteration)

    def on_step(step: Step) -> None:
        values = {**step.losses, "loss": step.total, "lr": step.learning_rate, "gradient_norm": step.gradient_norm,
                  "images_per_second": step.images / step.seconds, "data_share": step.data_seconds / step.seconds}
        run.history.append({"iteration": step.iteration, "loss": step.total})
        for logger in loggers:
            logger.log("train", step.iteration, values)
        listener.on_step(step)

    def on_trouble(trouble: Trouble) -> None:
        path = run.folder / f"trouble_{trouble.iteration:07d}_rank{distributed.rank()}.pt"
        dump_trouble(path, trouble, run.parts.model, run.settings)
        listener.on_note(f"A step was skipped: {trouble}. To look at it: m2f train --replay {path}")

    def on_due(done: int) -> None:
        last = done >= run.settings.train.iterations
        every = run.settings.train.eval_every
        if last or (every and done % every == 0):
            _evaluate(run, listener, loggers)
        if last or done % run.settings.train.checkpoint_every == 0:
            run.save()
            _keep_numbered(run)

    with asked_to_stop() as asked:
        try:
            ended = train(
                run.parts, iter(run.loader), run.state, on_step=on_step, on_trouble=on_trouble, on_due=on_due,
                should_stop=lambda: asked.name is not None,
            )
            if not ended:
                run.save()
        finally:
            for logger in loggers:
                logger.close()
    outcome = Outcome(
        run.folder, run.state.iteration, run.settings.train.iterations, run.state.best, run.state.skipped,
        time.perf_counter() - began, None if ended else asked.name,
    )
    if main:
        draw_curves(run.folder / "metrics.jsonl", run.folder / "curves.png")
        summary = {"schema_version": 1, **{k: str(v) if k == "folder" else v for k, v in vars(outcome).items()}}
        (run.folder / RESULTS).write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return outcome


def _evaluate(run: Run, listener: Listener, loggers: Sequence[Any]) -> None:
    result = run.evaluate()
    if result is None:
        return
    name = headline(run.settings.task)
    value = result.figures[name]
    for logger in loggers:
        logger.log("val", run.state.iteration, {k: v for k, v in result.figures.items() if v == v})
    if value == value and value > run.state.best.get("value", float("-inf")):
        run.state.best = {"metric": name, "value": value, "iteration": run.state.iteration}
        if distributed.rank() == 0:
            run.save_weights("best")
    listener.on_evaluated(run.state.iteration, result)


def _keep_numbered(run: Run) -> None:
    if not run.options.keep or distributed.rank() != 0:
        return
    run.save_weights(f"iteration_{run.state.iteration:07d}")
    for old in sorted(run.checkpoints.glob("iteration_*.safetensors"))[: -run.options.keep]:
        old.unlink()

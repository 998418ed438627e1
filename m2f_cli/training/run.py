"""A training run: its folder, its parts, what happens when it is due. The loop itself is in loop.py."""

from __future__ import annotations

import contextlib
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

from .. import model as networks
from .. import weights
from ..config import presets as config
from ..config.schema import Config
from ..data.formats.base import NoTask
from ..data.loader import Batch, Loader, of_worker, training_loader
from ..data.records import DataSet
from ..dataset_tools.check.report import glance
from ..errors import ConfigError, M2FError, Unreachable
from ..evaluation.evaluate import EvalResult, default_metrics, evaluate, headline
from ..inference.segmenter import Segmenter
from ..loss.criterion import make_criterion
from ..model.pilots import piloting_of
from ..runtime import distributed, random_state
from ..runtime.devices import choose_device
from ..runtime.files import is_part, remove_parts, write_json, write_text, writing_to
from ..runtime.locks import is_lock, locked
from ..runtime.signals import asked_to_stop
from ..version import __version__
from . import batch_size
from . import resume as state
from .data import Splits, identity, open_splits, refuse_other_data, same_classes, with_task_of
from .ema import EMA
from .initialise import initialise
from .loggers import check_loggers, make_loggers
from .loop import Parts, StepRecord, Trouble
from .loop import train as train_on
from .optimizer import freeze, make_optimizer, train_mode, trainable_table
from .options import OF_ONE_START, TrainOptions, read_environment
from .replay import dump_trouble
from .resume import RunState
from .visualise import draw_batch, draw_curves, draw_results

CHECKED = 50  # pictures that are looked at for classic mistakes before training starts
CONFIG, ENVIRONMENT, RESULTS = "config.yaml", "env.json", "results.json"
CHECKPOINTS = "checkpoints"
LR_FINDER = ("lr_finder.json", "lr_finder.png")  # may lie in a folder before its run


@dataclass
class TrainOutcome:
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
    on_step: Callable[[StepRecord], None] = lambda step: None
    on_evaluated: Callable[[int, EvalResult], None] = lambda iteration, result: None
    on_note: Callable[[str], None] = lambda text: None
    on_download: Callable[[Any], None] | None = None


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run that is ready to go on from `state`.

    is_new: whether it begins, which a resumed one without a checkpoint does, too. saved: after how many iterations the
    last checkpoint was written; None without one.
    """

    folder: Path
    settings: Config
    options: TrainOptions
    train_data: DataSet
    val_data: DataSet | None
    parts: Parts
    loader: Loader
    state: RunState
    is_new: bool = True
    saved: int | None = None
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        return identity(self.train_data)

    def trainable(self) -> list[tuple[str, int, int]]:
        return trainable_table(self.parts.model)

    # -- saving --

    def save(self) -> None:
        """Write everything that resuming needs, and the weights for use. Only the first process writes."""
        if distributed.rank() == 0:
            now = self.state
            done = {
                "iteration": now.iteration,
                "skipped": now.skipped,
                "best": now.best,
                "in_a_row": now.in_a_row,
                "evaluated": now.evaluated,
                "data": self.identity,
            }
            is_first = not (self.checkpoints / state.RESUME).is_file()  # weights without it could not go on
            if not is_first:
                self.save_weights("last")  # before: a run that was killed at its end has nothing more to do but this
            state.write(self.checkpoints / state.RESUME, {**done, **state.snapshot(self.parts)})
            if is_first:
                self.save_weights("last")
            self.saved = now.iteration

    def save_weights(self, name: str) -> Path:
        """A checkpoint that describes itself; averaged weights where there is an average."""
        tensors = self.parts.model.state_dict() if self.parts.ema is None else self.parts.ema.average
        return weights.save(
            self.checkpoints / f"{name}.safetensors", tensors, self.settings, self.train_data.categories
        )

    def restore(self, tree: dict[str, Any]) -> None:
        """Go back to where `save` was, of which `tree` is what was read."""
        state.restore(self.parts, tree)
        done = tree["iteration"]
        if distributed.rank() == 0:
            state.set_random_state(tree["random"], self.parts.device)
        else:  # only the first process's is kept; the others must not draw the same numbers
            torch.manual_seed(hash((self.settings.train.seed, done, distributed.rank())) % 2**63)
        self.state = RunState(done, tree["skipped"], tree["best"], tree.get("in_a_row", 0), tree.get("evaluated", done))
        self.saved = done
        if distributed.rank() == 0 and not (self.checkpoints / "last.safetensors").is_file():
            self.save_weights("last")  # the first save was killed between the two files

    # -- evaluating --

    def evaluate(self, on_progress: Callable[[Any], None] | None = None) -> EvalResult | None:
        """The figures of the network as it stands, on the val split; the network goes on training afterwards."""
        if self.val_data is None:
            return None
        model = self.parts.model
        averaged = self.parts.ema.applied(model) if self.parts.ema is not None else _as_it_is()
        with averaged, random_state.kept():
            segmenter = Segmenter(
                model, self.settings, self.val_data.categories, device=self.parts.device, source=self.settings.name
            )
            metrics = default_metrics(self.settings.task, self.val_data.categories)
            result = evaluate(segmenter, self.val_data.records, metrics, on_progress=on_progress, distributed=True)
            if distributed.rank() == 0:
                folder = self.folder / "val" / f"{self.state.iteration:07d}"
                draw_results(segmenter, self.val_data.records[:4], self.settings.task, folder)
        train_mode(model, self.parts.frozen)
        return result


def prepare(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    device: torch.device,
    listener: Listener,
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
    checkpoint = folder / CHECKPOINTS / state.RESUME
    is_new = distributed.on_main(lambda: not (options.resume and checkpoint.is_file()))
    tree = None if is_new else state.read_run(checkpoint, settings.train.iterations)
    is_own = data is not None or options.data is not None
    try:
        train_data, val_data = data or open_splits(settings, options.data, options.val_pictures, notes)
    except NoTask as error:
        settings = with_task_of(settings, error, notes)
        train_data, val_data = open_splits(settings, options.data, options.val_pictures, notes)
    notes += [*train_data.notes]
    same_classes(train_data, val_data)
    if options.resume:
        before = (read_environment(folder / ENVIRONMENT) if tree is None else tree).get("data")
        notes += _as_it_was(before, train_data, folder)
    if options.resume and is_new:
        notes.append("No checkpoint was written: the run begins anew, as it was started.")
    if is_own and is_new and distributed.rank() == 0:
        notes += [f"{w.message} {w.hint}" for w in glance(train_data, CHECKED, val_data)]
    if is_own:
        described = settings.data.model_copy(update={"dataset": train_data.name, "classes": "checkpoint"})
        settings = settings.model_copy(update={"data": described})
    torch.manual_seed(settings.train.seed + distributed.rank())
    model = networks.build(settings.model, len(train_data.categories), trust_code=options.trust_code)
    if is_new:
        notes += _initialise(model, settings, train_data, options, listener)
    if options.freeze:
        freeze(model, options.freeze)
    parts = _parts(model, settings, options, device)
    make_loader = functools.partial(
        training_loader,
        settings,
        train_data,
        rank=distributed.rank(),
        world=distributed.world_size(),
        on_error="skip" if options.skip_broken else "raise",
        pin=device.type == "cuda",
        trust_code=options.trust_code,
    )
    if options.micro_batch == "auto":
        options = _measure(parts, options, lambda size: iter(make_loader(batch=size)), notes)
    parts = _complete(parts, options)
    run = Run(folder, settings, options, train_data, val_data, parts, None, RunState(), is_new, notes=notes)
    if tree is not None:
        run.restore(tree)
    micro = settings.train.batch // (parts.accumulate * distributed.world_size())
    start_at = run.state.iteration * parts.accumulate
    run.loader = make_loader(batch=micro, workers=options.workers, start=start_at)
    return run


def _as_it_was(before: dict[str, Any] | None, data: DataSet, folder: Path) -> list[str]:
    """Notes on whether the data is what a run was begun with.

    Raises:
        ConfigError: it is not.
    """
    if before is None:
        return [f"{folder} does not say what it was trained on: whether this is the same data is not checked."]
    refuse_other_data(before, identity(data), folder)
    return []


def _initialise(
    model: nn.Module, settings: Config, data: DataSet, options: TrainOptions, listener: Listener
) -> list[str]:
    if options.init == "random":
        return ["The network starts from random numbers."]
    try:
        report = initialise(
            model,
            settings,
            data.categories,
            init=options.init,
            partial=options.init_partial,
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


def _parts(model: nn.Module, settings: Config, options: TrainOptions, device: torch.device) -> Parts:
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
    parts: Parts, options: TrainOptions, batches: Callable[[int], Iterator[Batch]], notes: list[str]
) -> TrainOptions:
    """The options with the number of pictures that the memory holds instead of "auto"."""
    own = batch_size.share_of(parts.config.batch, distributed.world_size())
    chosen = batch_size.measured_micro_batch(parts, own, batches)
    notes.append(f"--batch auto: {chosen} of the {own} pictures of a process and step fit into memory at once.")
    return dataclasses.replace(options, micro_batch=chosen)


def _complete(parts: Parts, options: TrainOptions) -> Parts:
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
        data: a folder of annotated images, a pair of data sets (to train on, to evaluate on or None), or None for
            the generated images of the preset.
        out: the folder of the run. It must be new, unless `resume=True`.
        listener: receives what the run does; the default stays silent.
        options: fields of `training.options.Options`, such as `init="random"`, `device="cuda"` or `resume=True`.

    Raises:
        M2FError: anything that cannot be done, in one sentence.
    """
    splits = data if isinstance(data, tuple) else None
    folder = None if data is None or splits else Path(data)
    return start(config, Path(out), TrainOptions(data=folder, **options), listener, data=splits)


def start(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    listener: Listener | None = None,
    command: Sequence[str] = (),
    data: Splits | None = None,
) -> TrainOutcome:
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
    device = choose_device(options.device)
    # First in, last out: whatever happens, the caller has its random numbers again and the folder is free at the end.
    with random_state.kept(), contextlib.ExitStack() as stack, distributed.group(device) as device:
        settings = distributed.on_main(lambda: _claim(settings, folder, options, stack))
        run = prepare(settings, folder, options, device, listener, data)
        _write_records(run, command)
        listener.on_start(run)
        return execute(run, listener)


def _claim(settings: Config, folder: Path, options: TrainOptions, stack: contextlib.ExitStack) -> Config:
    """Make the folder this process's own as long as the stack is open; gives the configuration of the run."""
    stack.enter_context(locked(folder, "A training"))
    with writing_to(folder):
        used = [path for path in folder.iterdir() if not _is_of_a_start(path)]
        has_weights = any((folder / CHECKPOINTS).glob("*.safetensors"))
    if has_weights and (folder / CONFIG).is_file() and not (folder / CHECKPOINTS / state.RESUME).is_file():
        raise ConfigError(
            f"The run {folder} has weights but no {CHECKPOINTS}/{state.RESUME}, so that it cannot go on.",
            hint=f"Copy that file, too, or train on from the weights: m2f train --init {folder} --out NEW_RUN.",
        )
    if options.resume:
        settings = read_settings(folder)
    else:
        _refuse_used(folder, used)
    remove_parts(folder)
    return settings


def _is_of_a_start(path: Path) -> bool:
    """Return True for what may lie in a folder before its run, or be left by one killed before its CONFIG."""
    if path.name == ENVIRONMENT and not path.with_name(CONFIG).exists():
        with contextlib.suppress(ConfigError):
            return "m2f" in read_environment(path)
    return path.name in LR_FINDER or is_lock(path) or is_part(path)


def _refuse_used(folder: Path, used: Sequence[Path]) -> None:
    if not used:
        return
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds files already, and no run.", hint="Choose another --out, or empty it.")
    if not (folder / CHECKPOINTS / state.RESUME).is_file():
        raise ConfigError(
            f"The run {folder} was started already and has no checkpoint yet.",
            hint="Use --resume, which begins it anew with its settings, or another --out.",
        )
    raise ConfigError(f"The run {folder} exists already.", hint="Use --resume to go on, or another --out.")


def read_settings(folder: Path) -> Config:
    """Read the configuration of a run.

    Raises:
        ConfigError: the folder is no run, or the file is damaged.
    """
    path = folder / CONFIG
    with writing_to(folder):
        is_run = path.is_file()
    if not is_run:
        raise ConfigError(f"{folder} is no run that could be resumed.", hint="Start it without --resume.")
    try:
        return config.load(path)
    except ConfigError as error:
        hint = f"Copy it again, or train on from the run's weights: m2f train --init {folder} --out NEW_RUN."
        raise ConfigError(error.message, hint=error.hint or hint) from error


def _write_records(run: Run, command: Sequence[str]) -> None:
    """Say in the folder what the run is; a resumed run only changes what was given anew."""
    if distributed.rank() != 0:
        return
    options = _recorded(run.options)
    before = read_environment(run.folder / ENVIRONMENT) if run.options.resume else {}
    if not before:
        before = {
            "m2f": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "device": str(run.parts.device),
            "processes": distributed.world_size(),
            "command": list(command),
            "options": {},
            "notes": run.notes,
            "data": run.identity,
        }
    if _lasting(before.get("options", {})) != _lasting(options):
        write_json(run.folder / ENVIRONMENT, {**before, "options": options}, indent=2, durable=True)
    if not run.options.resume:  # last: with it, the folder is a run
        write_text(run.folder / CONFIG, config.dump(run.settings), durable=True)
    if run.is_new:
        draw_batch(run.train_data, run.settings, run.folder / "samples", trust_code=run.options.trust_code)


def _recorded(options: TrainOptions) -> dict[str, Any]:
    """The options as plain values, which mean the same from any folder."""
    found = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in vars(options).items()}
    if options.init is not None and Path(options.init).exists():
        found["init"] = str(Path(options.init).absolute())
    return json.loads(json.dumps(found))


def _lasting(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OF_ONE_START}


class _Left(Exception):
    """A signal came in the middle of an evaluation, which can be done another time."""


def execute(run: Run, listener: Listener) -> TrainOutcome:
    began = time.perf_counter()
    main = distributed.rank() == 0
    loggers = []
    if main:
        tree = run.settings.model_dump(mode="json")
        loggers = make_loggers(
            run.options.loggers, run.folder, tree, from_iteration=run.state.iteration, evaluated=run.state.evaluated
        )

    def on_step(step: StepRecord) -> None:
        values = {
            **step.losses,
            "loss": step.total,
            "lr": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "images_per_second": step.images / step.seconds,
            "data_share": step.data_seconds / step.seconds,
        }
        run.history.append({"iteration": step.iteration, "loss": step.total})
        for logger in loggers:
            logger.log("train", step.iteration, values)
        listener.on_step(step)

    def on_trouble(trouble: Trouble) -> None:
        path = run.folder / f"trouble_{trouble.iteration:07d}_rank{distributed.rank()}.pt"
        dump_trouble(path, trouble, run.parts.model, run.settings)
        listener.on_note(f"A step was skipped: {trouble}. To look at it: m2f train --replay {path}")

    def on_scored(_: Any) -> None:
        if main and asked.name is not None:  # the others may wait for each other, and end with the first process
            raise _Left

    def on_due(done: int) -> None:
        train_ = run.settings.train
        last = done >= train_.iterations
        is_to_be_evaluated, is_to_be_saved = _is_to_be_evaluated(run), last or done % train_.checkpoint_every == 0
        if run.saved is None and (is_to_be_evaluated or (is_to_be_saved and run.options.keep)):
            run.save()  # no weights lie in a folder without what resuming needs
        if is_to_be_evaluated:
            _evaluate(run, listener, loggers, on_scored)
        if is_to_be_saved:
            if run.options.keep and main:  # first: what a checkpoint says is done is not done again
                run.save_weights(f"iteration_{run.state.iteration:07d}")
            run.save()
            _forget_old(run)

    with asked_to_stop() as asked:
        asked.is_busy = lambda: run.state.doing == "changing"
        try:
            _forget_old(run)  # a run that was killed may not have come to it
            with contextlib.closing(iter(run.loader)) as batches:
                if run.state.iteration and _is_to_be_evaluated(run):  # it was stopped in that evaluation
                    on_due(run.state.iteration)
                ended = train_on(
                    run.parts,
                    batches,
                    run.state,
                    on_step=on_step,
                    on_trouble=on_trouble,
                    on_due=on_due,
                    should_stop=lambda: asked.name is not None,
                )
            if not ended:
                run.save()
        except _Left:
            ended = False
            run.save()
        except BaseException as error:
            asked.is_busy = lambda: True
            rescue(run, listener)
            if distributed.is_active() and asked.name is not None and isinstance(error, RuntimeError):
                ended = False  # another process has left first, and so broke what they do together
            elif (failure := of_worker(error)) is not None:
                raise failure from error
            else:
                raise
        finally:
            for logger in loggers:
                logger.close()
    outcome = TrainOutcome(
        run.folder,
        run.state.iteration,
        run.settings.train.iterations,
        run.state.best,
        run.state.skipped,
        time.perf_counter() - began,
        None if ended else asked.name,
    )
    if main:
        draw_curves(run.folder / "metrics.jsonl", run.folder / "curves.png")
        summary = {"schema_version": 1, **{k: str(v) if k == "folder" else v for k, v in vars(outcome).items()}}
        write_json(run.folder / RESULTS, summary, indent=2)
    return outcome


def rescue(run: Run, listener: Listener) -> None:
    """Save what the last finished step left, and say how to go on. The error that ended the run is told by others."""
    if distributed.rank() != 0 or not run.state.iteration:
        return
    reason = "an error came while the weights were changing" if run.state.doing == "changing" else ""
    if not reason and run.saved != run.state.iteration:
        try:
            run.save()
        except (M2FError, RuntimeError) as error:  # RuntimeError: a GPU that is out of order
            reason = str(error)
    lost = "" if run.saved == run.state.iteration else f" The iterations after that could not be saved: {reason}"
    if run.saved is None:
        text = f"Nothing could be saved: {reason}"
    else:
        text = f"Saved after {run.saved} iterations. To go on: m2f train --out {run.folder} --resume.{lost}"
    with contextlib.suppress(OSError):  # a terminal that is closed
        listener.on_note(text)


def _is_to_be_evaluated(run: Run) -> bool:
    """Whether an evaluation is due after the iterations that are done, and has not been."""
    done, every = run.state.iteration, run.settings.train.eval_every
    is_due = done >= run.settings.train.iterations or bool(every and done % every == 0)
    return is_due and run.state.evaluated != done


def _evaluate(
    run: Run, listener: Listener, loggers: Sequence[Any], on_progress: Callable[[Any], None] | None = None
) -> None:
    result = run.evaluate(on_progress)
    if result is not None:
        name = headline(run.settings.task)
        value = result.figures[name]
        if value == value and value > run.state.best.get("value", float("-inf")):
            run.state.best = {"metric": name, "value": value, "iteration": run.state.iteration}
            if distributed.rank() == 0:
                run.save_weights("best")
        for logger in loggers:
            logger.log("val", run.state.iteration, {k: v for k, v in result.figures.items() if v == v})
    run.state.evaluated = run.state.iteration
    if result is not None:
        listener.on_evaluated(run.state.iteration, result)


def _forget_old(run: Run) -> None:
    """Remove numbered weights beyond those that are kept."""
    if not run.options.keep or distributed.rank() != 0:
        return
    for old in sorted(run.checkpoints.glob("iteration_*.safetensors"))[: -run.options.keep]:
        with writing_to(old):
            old.unlink(missing_ok=True)

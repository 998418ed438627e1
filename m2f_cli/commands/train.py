"""m2f train: train a model on annotated images."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..errors import ConfigError
from ..runtime.threads import usable_cores
from . import completion
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..config.schema import Config
    from ..evaluation.evaluate import EvalResult
    from ..training.loop import StepRecord
    from ..training.options import TrainOptions
    from ..training.prepare import Run
    from ..training.run import TrainOutcome

INTERRUPTED = 130


@help_page(
    "m2f train --preset small-panoptic --data my-images",
    "m2f train --out runs/train/small-panoptic --resume",
    most_used=("preset", "data", "out", "batch", "resume"),
    panel="Train",
)
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preset or YAML file to train.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.presets,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of annotated images.", rich_help_panel=opt.DATA)
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Weights to start from, or random; by default the backbone's ImageNet weights.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.models,
        ),
    ] = None,
    init_partial: Annotated[
        bool,
        typer.Option(
            "--init-partial",
            help="Accept an --init file of a backbone that lacks a part of it.",
            rich_help_panel=opt.MODEL,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the run; by default runs/train/<preset>.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.folders,
        ),
    ] = None,
    resume: opt.Resume = False,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Images per step of all processes; by default the preset's. auto: as many at once as fit.",
            rich_help_panel=opt.SPEED,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images at once; the gradients of a step are accumulated.", rich_help_panel=opt.SPEED),
    ] = None,
    set_: opt.SetOverrides = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART", help="Part not to train, such as backbone.stages.0; repeatable.", rich_help_panel=opt.MODEL
        ),
    ] = None,
    device: opt.Device = "auto",
    devices: opt.Devices = 1,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Number format: {', '.join(opt.PRECISIONS)}.",
            rich_help_panel=opt.SPEED,
            autocompletion=completion.words(*opt.PRECISIONS),
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read and augment images.", rich_help_panel=opt.SPEED)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for all random number generators.", rich_help_panel=opt.ADVANCED)
    ] = None,
    compile_: opt.Compile = False,
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations", help="Recompute activations: less memory, more time.", rich_help_panel=opt.SPEED
        ),
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            help="Logger: tensorboard, wandb or trackio; repeatable.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.words("tensorboard", "wandb", "trackio"),
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option(min=0, help="Numbered checkpoints to keep beside last and best.", rich_help_panel=opt.OUTPUT)
    ] = 0,
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken", help="Leave out images that cannot be read, and go on.", rich_help_panel=opt.DATA
        ),
    ] = False,
    val_pictures: Annotated[
        int | None, typer.Option("--val-images", min=1, help="Most images to evaluate on.", rich_help_panel=opt.DATA)
    ] = None,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Sweep the learning rate and suggest one instead of training.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of a skipped step to repeat and examine.", rich_help_panel=opt.ADVANCED
        ),
    ] = None,
    trust_code: opt.TrustCode = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train a model on your images, or reproduce a published one."""
    opt.one_of("precision", precision, opt.PRECISIONS)
    if replay is not None:
        return _replay(replay, device, trust_code)
    if devices > 1 and "RANK" not in os.environ:
        from ..runtime import distributed

        raise typer.Exit(distributed.launch(devices, sys.argv[1:]))
    from ..training import run as training

    settings, folder = _settings(preset, out, resume, set_, batch, precision, seed, trust_code)
    options = training.TrainOptions(
        data=data,
        init=init,
        init_partial=init_partial,
        freeze=tuple(freeze or ()),
        micro_batch=_micro_batch(batch, micro_batch),
        device=device,
        resume=resume,
        workers=_workers(workers, devices),
        loggers=tuple(logger or ()),
        compile=compile_,
        keep=keep,
        checkpoint_activations=checkpoint_activations,
        skip_broken=skip_broken,
        val_pictures=val_pictures,
        trust_code=trust_code or not resume,  # a new run is as the user wrote it
    )
    if resume:
        options = _as_before(folder, options)
    if find_lr:
        return _find_lr(settings, folder, options, as_json)
    with console.downloads() as fetched, Display(settings.train.iterations) as display:
        listener = training.Listener(
            on_start=display.start,
            on_step=display.step,
            on_evaluated=display.evaluated,
            on_note=console.warn,
            on_download=fetched,
        )
        listener = listener if _speaks() else training.Listener(on_note=console.warn)
        outcome = training.start(settings, folder, options, listener, ["m2f", *sys.argv[1:]])
    if _speaks():
        (_emit if as_json else _print)(outcome)
    if outcome.stopped is not None:
        raise typer.Exit(INTERRUPTED)


def _settings(
    preset: str | None,
    out: Path | None,
    resume: bool,
    overrides: list[str] | None,
    batch: str | None,
    precision: str | None,
    seed: int | None,
    trust_code: bool,
) -> tuple[Config, Path]:
    """Return the configuration and the folder of the run. A folder that is resumed may be somebody else's."""
    from ..config import presets as config
    from ..training.folder import CONFIG, read_settings

    if preset is None and not (resume and out is not None):
        raise ConfigError("Nothing says what to train.", hint="Pass --preset NAME; m2f presets list shows them.")
    folder = out or Path("runs/train") / Path(str(preset)).stem
    if resume:
        changed = [name for name, value in (("--set", overrides), ("--batch", batch), ("--seed", seed)) if value]
        if changed:
            raise ConfigError(f"{changed[0]} cannot change a run that goes on.", hint="Start a new one with --init.")
        settings = read_settings(folder)
        if not trust_code:
            config.refuse_code(settings, str(folder / CONFIG))
        return settings, folder
    extra = [*(overrides or [])]
    extra += [f"train.batch={batch}"] if batch not in (None, "auto") else []
    extra += [f"train.precision={precision}"] if precision else []
    extra += [f"train.seed={seed}"] if seed is not None else []
    return config.load(str(preset), extra), folder


def _micro_batch(batch: str | None, micro_batch: int | None) -> int | str | None:
    if batch != "auto":
        return micro_batch
    if micro_batch is not None:
        raise ConfigError(f"--batch auto finds what --micro-batch {micro_batch} says.", hint="Leave one of them out.")
    return "auto"


def _speaks() -> bool:
    """Return True in the first of several processes, which alone prints."""
    return os.environ.get("RANK", "0") == "0"


def _workers(asked: int | None, devices: int) -> int:
    if asked is not None:
        return asked
    return max(1, min(4, usable_cores() // devices - 1))


def _as_before(folder: Path, options: TrainOptions) -> TrainOptions:
    """Fill in options that are not given now with those that the run was started with."""
    import dataclasses

    from ..training.folder import ENVIRONMENT
    from ..training.options import OF_ONE_START, TrainOptions, stored_options

    before, fresh = stored_options(folder / ENVIRONMENT), TrainOptions()
    names = [field.name for field in dataclasses.fields(TrainOptions) if field.name not in OF_ONE_START]
    unsaid = [name for name in names if getattr(options, name) == getattr(fresh, name)]
    return dataclasses.replace(options, **{name: getattr(before, name) for name in unsaid})


class Display:
    """Progress of a training on stderr: a bar in a terminal, else a line every few seconds."""

    every_seconds = 15.0

    def __init__(self, iterations: int):
        self.iterations = iterations
        self.slow_data = 0.0
        self.shown = 0.0

    def __enter__(self) -> Display:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        stderr = console.stderr()
        self.is_terminal = stderr.is_terminal
        columns = (
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self.bar = Progress(*columns, console=stderr, disable=not self.is_terminal)
        self.task = self.bar.add_task("train", total=self.iterations, numbers="")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, run: Run) -> None:
        from ..runtime import distributed

        data, val = run.train_data, run.val_data
        things = sum(category.isthing for category in data.categories)
        classes = f"{len(data.categories)} classes ({things} things, {len(data.categories) - things} stuff)"
        held_back = f"{len(val.records)} to evaluate on" if val else "nothing to evaluate on"
        console.note(f"Data: {data.format}, {len(data.records)} images to train on, {held_back}, {classes}.")
        for text in run.notes:
            console.warn(text)
        train = run.settings.train
        processes = distributed.world_size()
        cut = [run.parts.accumulate, train.batch // (run.parts.accumulate * processes)]
        shape = " x ".join(map(str, [*([processes] if processes > 1 else []), *cut]))
        console.note(
            f"{train.iterations} iterations of {train.batch} images ({shape}), "
            f"{train.precision}, on {run.parts.device}, in {run.folder}."
        )
        rows = [[part, f"{trainable:,}", f"{every:,}"] for part, trainable, every in run.trainable()]
        for part, trainable, every in rows:
            console.note(f"  {part:14} {trainable:>12} of {every:>12} numbers are trained")
        self.bar.update(self.task, completed=run.state.iteration)

    def step(self, step: StepRecord) -> None:
        self.slow_data = 0.95 * self.slow_data + 0.05 * step.data_seconds / step.seconds
        losses = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in step.losses.items())
        numbers = f"loss {step.total:.3f} ({losses}) lr {step.learning_rate:.1e} {step.images / step.seconds:.1f} img/s"
        if self.slow_data > 0.3:
            numbers += f" - {100 * self.slow_data:.0f} % of the time waits for data (more --workers)"
        self.bar.update(self.task, completed=step.iteration + 1, numbers=numbers)
        now = time.monotonic()
        if not self.is_terminal and (now - self.shown > self.every_seconds or step.iteration + 1 == self.iterations):
            self.shown = now
            console.note(f"iteration {step.iteration + 1}/{self.iterations}: {numbers}")

    def evaluated(self, iteration: int, result: EvalResult) -> None:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in list(result.figures.items())[:4] if value == value)
        console.note(f"evaluated after {iteration}: {figures} ({result.images} images, {result.seconds:.0f} s)")


def _print(outcome: TrainOutcome) -> None:
    best = outcome.best
    figures = f" Best {best['metric']} {best['value']:.2f} after {best['iteration']} iterations." if best else ""
    skipped = f" {outcome.skipped} steps were skipped." if outcome.skipped else ""
    if outcome.stopped is not None:
        done = f"{outcome.iteration} of {outcome.iterations} iterations"
        console.out(f"Stopped by {outcome.stopped} after {done}.{figures}{skipped}")
        console.out(f"To go on: m2f train --out {outcome.folder} --resume")
        return
    console.out(f"Trained {outcome.iterations} iterations in {outcome.seconds:.0f} s.{figures}{skipped}")
    console.out(f"Now try it: m2f predict YOUR_IMAGES --model {outcome.folder}")


def _emit(outcome: TrainOutcome) -> None:
    console.emit_json(
        {
            "run": str(outcome.folder),
            "iteration": outcome.iteration,
            "iterations": outcome.iterations,
            "best": outcome.best,
            "skipped": outcome.skipped,
            "seconds": round(outcome.seconds, 3),
            "stopped": outcome.stopped,
        }
    )


def _find_lr(settings: Config, folder: Path, options: TrainOptions, as_json: bool) -> None:
    from ..training import lr_finder
    from ..training.prepare import Listener

    if options.resume:
        raise ConfigError("--find-lr looks for the rate of a new run.", hint="Leave out --resume.")
    steps = min(lr_finder.STEPS, settings.train.iterations)
    with console.downloads() as fetched, console.progress("Sweep", steps, "steps") as advance:

        def start(run: Run) -> None:
            for text in run.notes:
                console.warn(text)

        listener = Listener(on_start=start, on_download=fetched) if _speaks() else Listener()
        found = lr_finder.search(settings, folder, options, listener, lambda tried: advance(None))
    if not _speaks():
        return
    files = [str(folder / name) for name in lr_finder.FILES]
    option = f"--set {lr_finder.KEY}={found.suggested:g}"
    if as_json:
        return console.emit_json({"suggested": found.suggested, "option": option, "files": files})
    ended = "the loss diverged" if found.diverged else "the highest rate that is tried"
    console.note(f"{len(found.rates)} steps from {found.rates[0]:.0e} to {found.rates[-1]:.0e}: {ended}.")
    console.out(f"Suggested: {option} (the preset has {settings.train.optimizer.learning_rate:g})")
    console.out(f"The curve: {files[1]}")


def _replay(path: Path, device: str, trust_code: bool) -> None:
    from ..runtime.devices import choose_device
    from ..training.replay import look_at

    rows = look_at(path, choose_device(device), trust_code=trust_code)
    console.show_table(f"The step in {path}, repeated", ["what", "finding"], [list(row) for row in rows])

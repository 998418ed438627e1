"""m2f train: train a model on annotated images."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ConfigError
from ..runtime.durations import parse_duration
from ..runtime.threads import usable_cores
from ..storage.uris import place_of
from . import completion
from . import options as opt
from .help_page import help_page
from .report import written_of
from .train_display import Display

if TYPE_CHECKING:
    from ..config.schema import Config
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
    data: opt.TrainingData = None,
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
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Passes over the training images, in place of the preset's iterations.", rich_help_panel=opt.ADVANCED
        ),
    ] = None,
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
    store: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Content of checkpoints: whole, or trained for what is not frozen; with LoRA trained, else whole.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.words("whole", "trained"),
        ),
    ] = None,
    cache_features: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the features of a frozen backbone for later epochs.", rich_help_panel=opt.SPEED
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
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Share parameters and optimiser state between processes (FSDP): less memory.",
            rich_help_panel=opt.SPEED,
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
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Evaluations in a row without a better figure that end the training.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time, such as 90m or 2h, after which the run is saved and ends.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Sweep the learning rate and suggest one instead of training.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = False,
    dry_run: opt.DryRun = False,
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
    opt.one_of("store", store, ("whole", "trained"))
    if replay is not None:
        return _replay(replay, device, trust_code)
    if devices > 1 and "RANK" not in os.environ:
        from ..runtime import distributed

        raise typer.Exit(distributed.launch(devices, sys.argv[1:]))
    from ..training import run as training

    changes = {"--batch": batch, "--precision": precision, "--seed": seed, "--epochs": epochs, "--patience": patience}
    if not (resume or find_lr or dry_run) and _goes_on(preset, out):
        resume, batch, set_, changes = True, None, None, {}  # as they are in the run
    settings, folder = _settings(preset, out, resume, set_, changes, trust_code)
    options = training.TrainOptions(
        data=None if data is None else place_of(data),
        init=init,
        init_partial=init_partial,
        freeze=tuple(freeze or ()),
        store=store,
        cache_features=cache_features,
        micro_batch=_micro_batch(batch, micro_batch),
        device=device,
        resume=resume,
        workers=_workers(workers, devices),
        loggers=tuple(logger or ()),
        compile=compile_,
        keep=keep,
        shard=shard,
        checkpoint_activations=checkpoint_activations,
        skip_broken=skip_broken,
        val_pictures=val_pictures,
        time_budget=None if time_budget is None else parse_duration(time_budget, "--time-budget"),
        trust_code=trust_code or not resume,  # a new run is as the user wrote it
    )
    if resume:
        options = _as_before(folder, options)
    if find_lr and shard:
        raise ConfigError("--find-lr looks for the rate with whole parameters.", hint="Leave out --shard.")
    if find_lr:
        return _find_lr(settings, folder, options, as_json)
    if dry_run:
        return _dry_run(str(preset), settings, folder, options, as_json)
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
        page = written_of(outcome.folder)
        (_emit if as_json else _print)(outcome)
        if page is not None and not as_json:
            console.out(f"Report: {page}")
    if outcome.ended == "signal":
        raise typer.Exit(INTERRUPTED)


def _settings(
    preset: str | None,
    out: Path | None,
    resume: bool,
    overrides: list[str] | None,
    changes: Mapping[str, Any],
    trust_code: bool,
) -> tuple[Config, Path]:
    """Return the configuration and the folder of the run. A folder that is resumed may be somebody else's.

    Args:
        changes: values of the options that stand for a key of the configuration, by their names.
    """
    from ..config import presets as config
    from ..config.run_folder import CONFIG
    from ..training.folder import read_settings

    if preset is None and not (resume and out is not None):
        raise ConfigError("Nothing says what to train.", hint="Pass --preset NAME; m2f presets list shows them.")
    folder = _folder(preset, out)
    if resume:
        changed = [name for name, value in {"--set": overrides, **changes}.items() if value and name != "--precision"]
        if changed:
            raise ConfigError(f"{changed[0]} cannot change a run that goes on.", hint="Start a new one with --init.")
        settings = read_settings(folder)
        if not trust_code:
            config.refuse_code(settings, str(folder / CONFIG))
        return settings, folder
    said = {name.removeprefix("--"): value for name, value in changes.items() if value not in (None, "auto")}
    extra = [f"train.{name}={value}" for name, value in said.items()]
    return config.load(str(preset), [*(overrides or []), *extra]), folder


def _folder(preset: str | None, out: Path | None) -> Path:
    return out or Path("runs/train") / Path(str(preset)).stem


def _goes_on(preset: str | None, out: Path | None) -> bool:
    """Return True if the job of this process was restarted, and goes on with its own run."""
    from ..training.restart import is_restarted

    folder = _folder(preset, out)
    goes_on = is_restarted(folder, ["m2f", *sys.argv[1:]])
    if goes_on and _speaks():
        console.warn(f"This job was restarted: the run {folder} goes on, as with --resume.")
    return goes_on


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

    from ..config.run_folder import ENVIRONMENT
    from ..training.options import OF_ONE_START, TrainOptions, stored_options

    before, fresh = stored_options(folder / ENVIRONMENT), TrainOptions()
    names = [field.name for field in dataclasses.fields(TrainOptions) if field.name not in OF_ONE_START]
    unsaid = [name for name in names if getattr(options, name) == getattr(fresh, name)]
    return dataclasses.replace(options, **{name: getattr(before, name) for name in unsaid})


def _print(outcome: TrainOutcome) -> None:
    best = outcome.best
    figures = f" Best {best['metric']} {best['value']:.2f} after {best['iteration']} iterations." if best else ""
    skipped = f" {outcome.skipped} steps were skipped." if outcome.skipped else ""
    done = f"after {outcome.iteration} of {outcome.iterations} iterations"
    ends = {
        "finished": f"Trained {outcome.iterations} iterations in {outcome.seconds:.0f} s.",
        "early": f"Stopped early {done}.",
        "time": f"The time budget is used up {done}.",
        "signal": f"Stopped by {outcome.stopped} {done}.",
    }
    console.out(f"{ends[outcome.ended]}{figures}{skipped}")
    console.next_steps(*_next(outcome))


def _next(outcome: TrainOutcome) -> list[list[str | Path]]:
    """Return the commands that come next. Without an evaluation the run may have no images for one."""
    if outcome.ended in ("signal", "time"):
        return [["m2f", "train", "--out", outcome.folder, "--resume"]]
    data = [] if outcome.best else ["--data", "DIR"]
    return [
        ["m2f", "predict", "IMAGES", "--model", outcome.folder],
        ["m2f", "eval", "--model", outcome.folder, *data],
    ]


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
            "ended": outcome.ended,
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


def _dry_run(preset: str, settings: Config, folder: Path, options: TrainOptions, as_json: bool) -> None:
    from ..config import presets as config
    from ..training import dry_run
    from ..training.prepare import Listener
    from .dry_run import show_train

    notes: list[str] = []
    with console.downloads() as fetched:
        listener = Listener(on_start=lambda run: notes.extend(run.notes), on_download=fetched)
        found = dry_run.dry_run(settings, folder, options, listener)
    if not _speaks():
        return
    for text in notes:
        console.warn(text)
    show_train(found, config.load(preset), notes, as_json)


def _replay(path: Path, device: str, trust_code: bool) -> None:
    from ..runtime.devices import choose_device
    from ..training.replay import look_at

    rows = look_at(path, choose_device(device), trust_code=trust_code)
    console.show_table(f"The step in {path}, repeated", ["what", "finding"], [list(row) for row in rows])

"""Preparation of a run, new or resumed: its data, its network and the other parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import model as networks
from ..config.run_folder import CHECKPOINTS, ENVIRONMENT, LAST, RESUME
from ..config.schema import Config, TrainConfig
from ..data.formats.base import NoTask
from ..data.loader import Batch, Loader, training_loader
from ..data.records import DataSet
from ..dataset_tools.check.report import glance
from ..errors import ConfigError, Unreachable, about, unknown_name
from ..evaluation.evaluate import EvalResult, default_metrics, evaluate, figures_of, headline
from ..inference.segmenter import Segmenter
from ..runtime import distributed, random_state
from . import batch_size, sharding
from . import resume as state
from .data import Splits, identity, open_splits, refuse_other_data, same_classes, with_task_of
from .ema import EMA
from .feature_cache import cache_features
from .folder import without_checksum
from .initialise import initialise
from .length import evaluations, with_iterations
from .loop import StepRecord
from .optimizer import freeze, train_mode, trainable_table
from .options import TrainOptions, read_environment
from .parts import Parts, make_parts
from .resume import RunState
from .store import Origin, StoredWeights
from .visualise import draw_results

CHECKED = 50  # images that are checked for common mistakes before training starts


@dataclass
class Listener:
    """Callbacks of a training run. Each receives a plain record; the defaults do nothing."""

    on_start: Callable[[Run], None] = lambda run: None
    on_step: Callable[[StepRecord], None] = lambda step: None
    on_evaluated: Callable[[int, EvalResult], None] = lambda iteration, result: None
    on_note: Callable[[str], None] = lambda text: None
    on_download: Callable[[Any], None] | None = None


@dataclass
class Run:
    """A run that is ready to go on from `state`.

    Attributes:
        folder: folder of the run.
        settings: configuration.
        options: options beside the configuration.
        train_data: images to train on.
        val_data: images to evaluate on. None: no evaluation.
        parts: parts of a training step.
        loader: batches of `train_data`.
        state: position in the run.
        is_new: True if the run starts at iteration 0. A resumed run without a checkpoint does, too.
        saved: iterations at the last checkpoint. None without one.
        notes: remarks for people.
        history: iteration and loss of each step.
        origin: weights that it started from. None: random numbers.
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
    origin: Origin | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        return identity(self.train_data)

    @functools.cached_property
    def stored(self) -> StoredWeights:
        return StoredWeights.of(self.parts.model, self.settings, self.options, self.origin)

    @property
    def best_metric(self) -> str:
        """Figure that says which checkpoint is best."""
        return self.settings.train.best_metric or headline(self.settings.task)

    def trainable(self) -> list[tuple[str, int, int]]:
        return trainable_table(self.parts.model)

    # -- saving --

    def save(self) -> None:
        """Write everything that resuming needs, and the weights. Only the first process writes.

        All processes must call it where they share the parameters.
        """
        now = self.state
        weights, tree = self.weights(), self._whole(state.snapshot(self.parts))
        if distributed.rank() == 0:
            done = {
                "iteration": now.iteration,
                "skipped": now.skipped,
                "best": now.best,
                "in_a_row": now.in_a_row,
                "evaluated": now.evaluated,
                "data": self.identity,
                "origin": self.origin and {**vars(self.origin), "names": [*self.origin.names]},
            }
            is_first = not (self.checkpoints / RESUME).is_file()  # a run with weights alone cannot be resumed
            if not is_first:  # first, because a run whose RESUME is at its end would not write it again
                self._write_weights("last", weights)
            state.write(self.checkpoints / RESUME, {**done, **tree})
            if is_first:
                self._write_weights("last", weights)
        self.saved = now.iteration

    def weights(self) -> dict[str, Tensor]:
        """Return whole tensors for a checkpoint: the averaged ones if there are any. See `sharding.whole`."""
        return self._whole(self.parts.model.state_dict() if self.parts.ema is None else self.parts.ema.average)

    def _whole(self, tree: dict[str, Any]) -> dict[str, Any]:
        return sharding.whole(tree) if self.options.shard else tree

    def save_weights(self, name: str) -> None:
        """Write a checkpoint with its configuration and classes. Only the first process writes, see `save`."""
        weights = self.weights()
        if distributed.rank() == 0:
            self._write_weights(name, weights)

    def _write_weights(self, name: str, tensors: dict[str, Tensor]) -> None:
        path = self.checkpoints / f"{name}.safetensors"
        self.stored.write(path, tensors, self.settings, self.train_data.categories)

    def restore(self, tree: dict[str, Any]) -> None:
        """Return to the state in `tree`, which `save` wrote."""
        state.restore(self.parts, tree)
        self.origin = Origin.of_tree(tree.get("origin"))  # older versions did not write it
        done = tree["iteration"]
        if distributed.rank() == 0:  # the others have their numbers from the iteration
            state.set_random_state(tree["random"], self.parts.device)
        self.state = RunState(done, tree["skipped"], tree["best"], tree.get("in_a_row", 0), tree.get("evaluated", done))
        self.saved = done
        if distributed.on_main(lambda: not (self.checkpoints / LAST).is_file()):
            self.save_weights("last")  # the first save was killed between the two files

    # -- evaluating --

    def evaluate(self, on_progress: Callable[[Any], None] | None = None) -> EvalResult | None:
        """Evaluate the network on the val split. It is left ready to train."""
        if self.val_data is None:
            return None
        with self._to_evaluate() as model, random_state.kept():
            segmenter = Segmenter(
                model, self.settings, self.val_data.categories, device=self.parts.device, source=self.settings.name
            )
            metrics = default_metrics(self.settings.task, self.val_data.categories)
            result = evaluate(segmenter, self.val_data.records, metrics, on_progress=on_progress, distributed=True)
            if distributed.rank() == 0:
                folder = self.folder / "val" / f"{self.state.iteration:07d}"
                draw_results(segmenter, self.val_data.records[:4], self.settings.task, folder)
        train_mode(self.parts.model, self.parts.frozen)
        return result

    @contextlib.contextmanager
    def _to_evaluate(self) -> Iterator[nn.Module]:
        """Yield the network with the averaged weights, if there are any.

        Processes evaluate different numbers of images, so with shared parameters each gets a whole network.
        """
        model, ema = self.parts.model, self.parts.ema
        if not sharding.is_sharded(model):
            with ema.applied(model) if ema is not None else contextlib.nullcontext():
                yield model
            return
        with random_state.kept():
            alone = networks.build(self.settings.model, model.num_classes, trust_code=self.options.trust_code)
        alone.load_state_dict(sharding.whole_everywhere(model.state_dict() if ema is None else ema.average))
        yield alone.to(self.parts.device)


def prepare(
    settings: Config,
    folder: Path,
    options: TrainOptions,
    device: torch.device,
    listener: Listener,
    data: Splits | None = None,
) -> Run:
    """Make all parts of a run, or restore them with `options.resume`.

    Args:
        data: data sets to train and evaluate on, instead of those that `options.data` or the preset names.

    Raises:
        ConfigError, DataError, WeightsError: configuration, data or weights cannot be used. Nothing has been written.
    """
    if settings.train is None:
        raise ConfigError(f"The preset {settings.name} does not say how to train.", hint="Choose another preset.")
    notes: list[str] = []
    if device.type == "cpu" and settings.train.precision == "fp16":
        notes.append("fp16 is for GPUs and many times slower on a CPU: training is in fp32.")
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"precision": "fp32"})})
    sharding.check(options, settings.train)
    checkpoint = folder / CHECKPOINTS / RESUME
    is_new = distributed.on_main(lambda: not (options.resume and checkpoint.is_file()))
    tree = None if is_new else state.read_run(checkpoint, settings.train.iterations)
    is_own = data is not None or options.data is not None
    settings, train_data, val_data = _open(settings, options, data, notes)
    _refuse_unknown_figure(settings, train_data)
    _check_patience(settings.train, val_data, notes)
    if options.resume:
        notes += _notes_on_resuming(tree, train_data, folder)
    if is_own and is_new and distributed.rank() == 0:
        notes += [f"{w.message} {w.hint}" for w in glance(train_data, CHECKED, val_data)]
    if is_own:
        described = settings.data.model_copy(update={"dataset": train_data.name, "classes": "checkpoint"})
        settings = settings.model_copy(update={"data": described})
    torch.manual_seed(settings.train.seed + distributed.rank())
    model = networks.build(settings.model, len(train_data.categories), trust_code=options.trust_code)
    origin = _initialise(model, settings, train_data, options, listener, notes) if is_new else None
    if options.freeze:
        freeze(model, options.freeze)
    cache_features(model, settings, train_data, options)
    parts = make_parts(model, settings, options, device)
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
    run.origin = origin
    if tree is not None:
        with about(checkpoint):
            run.restore(tree)
    _ = run.stored  # refuses what cannot be stored before the training, not after it
    micro = settings.train.batch // (parts.accumulate * distributed.world_size())
    start_at = run.state.iteration * parts.accumulate
    run.loader = make_loader(batch=micro, workers=options.workers, start=start_at)
    return run


def _open(
    settings: Config, options: TrainOptions, data: Splits | None, notes: list[str]
) -> tuple[Config, DataSet, DataSet | None]:
    """Return the data sets to train and evaluate on, and the settings with their task and the length of the run.

    Raises:
        ConfigError, DataError: the data sets cannot be used, or do not fit each other or the settings.
    """
    try:
        train_data, val_data = data or open_splits(settings, options.data, options.val_pictures, notes)
    except NoTask as error:
        settings = with_task_of(settings, error, notes)
        train_data, val_data = open_splits(settings, options.data, options.val_pictures, notes)
    notes += train_data.notes
    same_classes(train_data, val_data)
    return with_iterations(settings, len(train_data.records), notes), train_data, val_data


def _refuse_unknown_figure(settings: Config, data: DataSet) -> None:
    """Refuse a train.best_metric that no evaluation of the run gives.

    Raises:
        ConfigError: it is unknown. The message has the nearest names.
    """
    name = settings.train.best_metric
    known = figures_of(default_metrics(settings.task, data.categories)) if name is not None else ()
    if name is not None and name not in known:
        raise unknown_name(f"figure of {settings.task} segmentation (train.best_metric)", name, known)


def _check_patience(train: TrainConfig, val_data: DataSet | None, notes: list[str]) -> None:
    """Refuse a train.patience without images to evaluate on. A remark on one that cannot be used up goes to `notes`.

    Raises:
        ConfigError: there are no images.
    """
    if train.patience is None:
        return
    if val_data is None:
        raise ConfigError(
            f"train.patience = {train.patience} counts evaluations, and there are no images to evaluate on.",
            hint="Add a val split (m2f data split makes one), or leave out the patience.",
        )
    if evaluations(train) <= train.patience:
        notes.append(
            f"train.patience = {train.patience} has no effect: train.eval_every = {train.eval_every} means "
            f"{evaluations(train)} evaluations in {train.iterations} iterations."
        )


def _notes_on_resuming(tree: dict[str, Any] | None, data: DataSet, folder: Path) -> list[str]:
    """Return notes on what cannot be checked or restored of an earlier run.

    Args:
        tree: the state of the run; None where no checkpoint was written.
        data: the data set to train on.
        folder: folder of the run.

    Raises:
        ConfigError: the data is not the same as at the start of the run.
    """
    notes = []
    before = (read_environment(folder / ENVIRONMENT) if tree is None else tree).get("data")
    if before is None:
        notes.append(f"{folder} does not say what it was trained on: whether this is the same data is not checked.")
    else:
        refuse_other_data(before, identity(data), folder)
    names = ", ".join(without_checksum(folder))
    if names:
        notes.append(f"An older m2f wrote {names} without a checksum: whether the run is damaged is not checked.")
    if tree is None:
        notes.append("No checkpoint was written: the run begins anew, as it was started.")
    return notes


def _initialise(
    model: nn.Module,
    settings: Config,
    data: DataSet,
    options: TrainOptions,
    listener: Listener,
    notes: list[str],
) -> Origin | None:
    if options.init == "random":
        notes.append("The network starts from random numbers.")
        return None
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
        # A machine without a network can still train, but the user must know that the backbone is not pretrained.
        notes.append(
            "THE BACKBONE STARTS FROM RANDOM NUMBERS, not from ImageNet as published: expect clearly lower figures. "
            f"{error} Or say --init random to be content with that, --init REF for other weights."
        )
        return None
    notes += report.notes
    return report.origin


def _measure(
    parts: Parts, options: TrainOptions, batches: Callable[[int], Iterator[Batch]], notes: list[str]
) -> TrainOptions:
    """Return the options with the number of images that fit into memory instead of "auto"."""
    own = batch_size.share_of(parts.config.batch, distributed.world_size())
    chosen = batch_size.measured_micro_batch(parts, own, batches)
    notes.append(f"--batch auto: {chosen} of the {own} images of a process and step fit into memory at once.")
    return dataclasses.replace(options, micro_batch=chosen)


def _complete(parts: Parts, options: TrainOptions) -> Parts:
    """Return the parts wrapped for several processes. The average begins with the weights of the first process."""
    network = parts.model if options.shard else distributed.wrap(parts.model, parts.device)
    if options.compile:
        network = torch.compile(network)
    ema = EMA(parts.model, parts.config.ema_decay) if parts.config.ema_decay else None
    accumulate = batch_size.accumulation(parts.config.batch, distributed.world_size(), options.micro_batch)
    return dataclasses.replace(parts, network=network, ema=ema, accumulate=accumulate)

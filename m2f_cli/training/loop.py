"""The training loop. Everything that happens in an iteration is in `step` and `train`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.loader import Batch, of_worker
from ..errors import ConfigError, M2FError, is_out_of_memory
from ..loss import Pairs, Piloted, normaliser
from ..model.pilots import Pilots
from ..runtime import distributed
from ..runtime.devices import DTYPES
from ..structures.predictions import Prediction
from . import sharding
from .optimizer import clip_gradients, follow_schedule, train_mode
from .parts import Parts
from .resume import LastStep, RunState

PATIENCE = 5  # steps in a row that may be skipped before training stops


@dataclass
class StepRecord:
    """Record of an iteration, for progress and logs.

    Attributes:
        iteration: number of the iteration, from 0.
        losses: weighted losses by kind, summed over layers.
        learning_rate: base learning rate.
        gradient_norm: L2 norm of all gradients before clipping.
        images: images of all processes.
        data_seconds: seconds of waiting for data.
        seconds: seconds of the whole iteration.
        skipped: True if the weights did not change, because a number was not finite.
        scale: scale of the losses for fp16. None without a gradient scaler.
    """

    iteration: int
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    images: int
    data_seconds: float
    seconds: float
    skipped: bool = False
    scale: float | None = None

    @property
    def total(self) -> float:
        return sum(self.losses.values())


@dataclass
class NonFiniteStep:
    """A step whose loss or gradient was not finite, with everything that repeats it.

    Attributes:
        iteration: number of the iteration, from 0.
        losses: weighted losses by kind, summed over layers.
        gradient_norm: L2 norm of all gradients.
        batches: batches of the step.
    """

    iteration: int
    losses: dict[str, float]
    gradient_norm: float
    batches: Sequence[Batch]

    def __str__(self) -> str:
        broken = [name for name, value in self.losses.items() if not math.isfinite(value)]
        what = f"the loss {broken[0]} is {self.losses[broken[0]]}" if broken else "a gradient is not finite"
        names = [name for batch in self.batches for name in batch.names]
        return f"in iteration {self.iteration} {what} (images: {', '.join(names[:4])})"


def train_step(parts: Parts, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """Compute losses and clipped gradients of one optimiser step over several batches, as if they were one.

    The losses are normalised by the number of masks in all batches and processes. Accumulating 8 times 2 images
    therefore gives the same gradients as 8 GPUs with 2 images each.

    Returns:
        The losses by name, averaged over the batches, and the norm of the gradients. Both stay on the device.
    """
    parts.optimizer.zero_grad(set_to_none=True)
    batches = [batch.to(parts.device, non_blocking=True) for batch in batches]
    num_masks = normaliser([target for batch in batches for target in batch.targets], parts=len(batches))
    totals: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        is_kept = not last and hasattr(parts.network, "no_sync")  # shared gradients are added up in their shares
        alone = parts.network.no_sync() if is_kept else contextlib.nullcontext()
        with alone:
            losses = losses_of(parts, batch, num_masks)
            parts.scaler.scale(sum(losses.values()) / len(batches)).backward()
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0) + loss.detach() / len(batches)
    if sharding.is_sharded(parts.model):
        sharding.check_gradients(parts.model)
    parts.scaler.unscale_(parts.optimizer)
    return totals, clip_gradients(parts.model, parts.config.optimizer.clip_norm)


def losses_of(parts: Parts, batch: Batch, num_masks: Tensor) -> dict[str, Tensor]:
    """Return the weighted losses of a batch, including those of pilots if there are any."""
    dtype = DTYPES[parts.config.precision]
    pilots = None if parts.piloting is None else parts.piloting(batch.targets, batch.padded_size)
    autocast = torch.autocast(parts.device.type, dtype=dtype, enabled=dtype is not torch.float32)
    with autocast, _norms_of_one_value(batch):
        prediction = parts.network(batch.images_BCHW, *([] if pilots is None else [pilots]))
    return losses_for(parts.criterion, prediction, pilots, batch, num_masks)


@contextlib.contextmanager
def _norms_of_one_value(batch: Batch) -> Iterator[None]:
    """Explain PyTorch's error that a batch norm cannot be trained on one value per channel.

    Raises:
        ConfigError: PyTorch refuses the batch for that reason.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = batch.padded_size
        raise ConfigError(
            f"{len(batch.names)} image of {height} x {width} pixels is too little for the batch norms of this network.",
            hint="Train on larger images, or on more at once: --batch, --micro-batch.",
        ) from error


def losses_for(
    criterion: nn.Module, prediction: Prediction, pilots: Pilots | None, batch: Batch, num_masks: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the weighted losses of a prediction. Its first queries are the `pilots`, if there are any."""
    annotation = (batch.targets, batch.padded_size, num_masks)
    if pilots is None:
        return criterion(prediction, *annotation)
    prediction, answers = pilots.split(prediction)
    if len(pilots):
        losses = criterion(prediction, *annotation, pilots=_supervised(pilots, answers))
    else:  # all processes must report the same losses, also those without objects
        losses = criterion(prediction, *annotation)
        losses |= {_of_pilots(name): torch.zeros_like(loss) for name, loss in losses.items()}
    if not pilots.config.class_loss:
        losses = {name: loss for name, loss in losses.items() if not name.startswith("loss_ce_dn")}
    return losses


def _supervised(pilots: Pilots, answers: Prediction) -> Piloted:
    pairs = [Pairs(*image) for image in pilots.pairs(len(answers.layers))]
    return Piloted(answers, pairs, pilots.groups)


def _of_pilots(name: str) -> str:
    """Return the name of the same loss for pilot queries: loss_ce_dn_0 for loss_ce_0."""
    first, kind, *number = name.split("_")
    return "_".join([first, kind, "dn", *number])


def train(
    parts: Parts,
    batches: Iterator[Batch],
    state: RunState,
    *,
    on_step: Callable[[StepRecord], None],
    on_non_finite_step: Callable[[NonFiniteStep], None],
    on_due: Callable[[int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train from `state.iteration` to the end.

    Args:
        batches: endless stream of batches from `state.iteration` on.
        on_step: called after every iteration.
        on_non_finite_step: called for a step that was skipped because a number was not finite.
        on_due: called after each iteration with the number of iterations done. It evaluates and saves when due.
        should_stop: called before each step. If it returns True in one process, all processes stop.

    Returns:
        True if the end was reached, False if `should_stop` ended it.

    Raises:
        M2FError: `PATIENCE` steps in a row were not finite, or a process cannot make its batch. On any error,
            `state.doing` says what was interrupted.
    """
    config = parts.config
    train_mode(parts.model, parts.frozen)
    last_step = LastStep(parts)
    scheduled = [module for module in parts.model.modules() if hasattr(module, "at_step")]
    while state.iteration < config.iterations:
        began = time.perf_counter()
        chosen, failure = _fetched(batches, parts.accumulate)
        data_seconds = time.perf_counter() - began
        is_asked = should_stop()
        if distributed.any_of_us(is_asked or failure is not None, parts.device):
            failure = distributed.first_error(None if is_asked else failure)
            if failure is not None:
                raise failure
            return False
        rate = follow_schedule(parts.optimizer, state.iteration, config)
        for module in scheduled:
            module.at_step(state.iteration, config.iterations)
        if distributed.rank() > 0:  # only the random state of the first process is saved
            torch.manual_seed(_seed_of_step(config.seed, state.iteration))
        with _one_step(state, last_step):
            values, norm = to_host(*train_step(parts, chosen))
            state.doing = "changing"
            finite = apply(parts, values, norm)
            done, state.iteration = state.iteration, state.iteration + 1
            state.doing = "nothing"
            last_step.note()
        state.in_a_row = 0 if finite is not None else state.in_a_row
        images = sum(len(batch.names) for batch in chosen) * distributed.world_size()
        seconds = time.perf_counter() - began
        scale = parts.scaler.get_scale() if parts.scaler.is_enabled() else None
        if finite is None:
            _note_non_finite_step(state, NonFiniteStep(done, values, norm, chosen), on_non_finite_step)
        on_step(StepRecord(done, values, rate, norm, images, data_seconds, seconds, not finite, scale))
        on_due(state.iteration)
    return True


def _seed_of_step(seed: int, iteration: int) -> int:
    """Return the seed of this process for a step. It is the same in a run that was resumed."""
    return hash((seed, iteration, distributed.rank())) % 2**63


def _fetched(batches: Iterator[Batch], count: int) -> tuple[list[Batch], M2FError | None]:
    """Return the batches of a step, or the error that prevented it, which the other processes must learn of."""
    try:
        return [next(batches) for _ in range(count)], None
    except M2FError as error:
        return [], error
    except RuntimeError as error:
        failure = of_worker(error)
        if failure is None:
            raise
        return [], failure


@contextlib.contextmanager
def _one_step(state: RunState, last_step: LastStep) -> Iterator[None]:
    """Keep `state.doing` up to date inside the block. An error before any weight changed undoes the step.

    Raises:
        M2FError: the device has too little memory for the step.
    """
    state.doing = "computing"
    try:
        yield
    except BaseException as error:
        if state.doing == "computing":
            state.doing = "changing"  # stays so if a broken GPU raises an error again
            with contextlib.suppress(RuntimeError):
                last_step.bring_back()
                state.doing = "nothing"
        if is_out_of_memory(error):
            hint = "Use --micro-batch 1, --checkpoint-activations, smaller crops or a smaller model."
            raise M2FError(f"Not enough memory for step {state.iteration} of the training.", hint=hint) from error
        raise


def apply(parts: Parts, values: dict[str, float], norm: float) -> bool | None:
    """Apply the gradients to the weights, and return True if that was possible.

    False means that fp16 overflowed: the gradient scaler skipped the step and lowered its scale. None means that the
    loss, or a gradient without a scaler, is not finite. Nothing was changed then.
    """
    usable = math.isfinite(sum(values.values()))
    finite = usable and math.isfinite(norm)
    if finite or (usable and parts.scaler.is_enabled()):
        parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if finite and parts.ema is not None:
        parts.ema.update(parts.model)
    return finite if finite or (usable and parts.scaler.is_enabled()) else None


def _note_non_finite_step(
    state: RunState, non_finite: NonFiniteStep, on_non_finite_step: Callable[[NonFiniteStep], None]
) -> None:
    """Count a skipped step and report it.

    Raises:
        M2FError: it was the last of `PATIENCE` in a row.
    """
    state.in_a_row += 1
    state.skipped += 1
    on_non_finite_step(non_finite)
    if state.in_a_row >= PATIENCE:
        raise M2FError(
            f"Training stopped: {PATIENCE} steps in a row were not finite; {non_finite}.",
            hint="Lower train.optimizer.learning_rate, or use --precision fp32; --replay repeats the step.",
        )


def to_host(losses: dict[str, Tensor], norm: Tensor) -> tuple[dict[str, float], float]:
    """Return the losses summed over layers (loss_ce, loss_mask, loss_dice) and the norm, as means over processes.

    All numbers come from the device in one transfer.
    """
    kinds: dict[str, Tensor] = {}
    for name, loss in losses.items():
        kind = name.rstrip("0123456789").rstrip("_")
        kinds[kind] = kinds.get(kind, 0) + loss
    values = torch.stack([*kinds.values(), norm.to(next(iter(kinds.values())))]).double()
    *numbers, norm_value = (distributed.sum_over_processes(values) / distributed.world_size()).tolist()
    return dict(zip(kinds, numbers, strict=True)), norm_value

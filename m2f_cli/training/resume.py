"""State that resumes a run exactly where it was, in one file that is always replaced as a whole.

`checkpoints/resume.pt` is sufficient for that. `last.safetensors` and `best.safetensors` beside it are for inference.
"""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import M2FError, WeightsError
from ..runtime import checksums
from ..runtime.files import atomic
from ..weights import torch_files
from ..weights.pickle_source import Damaged
from ..weights.torch_save import torch_file
from .optimizer import check_moments, lay_out_moments
from .sharding import shares, shares_of_state

if TYPE_CHECKING:
    from .parts import Parts

SCHEMA_VERSION = 1
_OTHER = "The configuration of the run was changed, or the file is damaged or of another run."


@dataclass
class RunState:
    """State of a run beside its tensors.

    Attributes:
        iteration: next iteration, from 0.
        skipped: number of steps that were skipped because a number was not finite.
        best: best value of the headline metric so far, with its name, iteration and figures of each class.
        in_a_row: number of skipped steps since the last good one.
        evaluated: iterations at the last evaluation.
        doing: work that an error would interrupt. While "computing", only the values that `LastStep` keeps have
            changed. While "changing", the weights in memory belong to no finished step.
    """

    iteration: int = 0
    skipped: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    in_a_row: int = 0
    evaluated: int = 0
    doing: Literal["nothing", "computing", "changing"] = "nothing"


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that a step uses. Data have their own, which depend on the position alone."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    try:
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"The state of the random numbers makes no sense: {error}.") from error


def snapshot(parts: Parts) -> dict[str, Any]:
    """Return everything that training changes, including random numbers. Tensors are not copied."""
    return {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "ema": None if parts.ema is None else parts.ema.state_dict(),
        "random": random_state(parts.device),
    }


def restore(parts: Parts, tree: dict[str, Any]) -> None:
    """Restore what `snapshot` returned, except random numbers.

    Raises:
        WeightsError: the tree is of another network or another optimizer.
    """
    try:
        parts.model.load_state_dict(shares(tree["model"], parts.model.state_dict()))
        parts.optimizer.load_state_dict(shares_of_state(tree["optimizer"], parts.optimizer))
        parts.scaler.load_state_dict(tree["scaler"])
        if parts.ema is not None and tree["ema"] is not None:
            average = shares(tree["ema"]["average"], parts.ema.average)
            parts.ema.load_state_dict({**tree["ema"], "average": average})
        if parts.scaler.is_enabled() and not all(isinstance(value, (int, float)) for value in tree["scaler"].values()):
            raise ValueError("the state of the gradient scaler holds invalid numbers")
        check_moments(parts.optimizer)
        lay_out_moments(parts.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise WeightsError(
            f"The state of the run does not fit its network and optimizer: {reason}.",
            hint=_OTHER,
        ) from error


@contextmanager
def unchanged(parts: Parts) -> Iterator[None]:
    """Undo all steps of the block at its end. The copy is on the host and needs no GPU memory."""
    before = on_host(snapshot(parts))
    try:
        yield
    finally:
        parts.optimizer.zero_grad(set_to_none=True)
        restore(parts, before)
        set_random_state(before["random"], parts.device)


def on_host(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: on_host(value) for key, value in tree.items()}
    return [on_host(value) for value in tree] if isinstance(tree, list) else copy.deepcopy(tree)


class LastStep:
    """Copy of the values that a forward pass changes (random numbers, running statistics), after the last step.

    An error in the middle of a step leaves weights and optimiser unchanged, but not these.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.buffers = list(parts.model.buffers())
        self.kept = [buffer.clone() for buffer in self.buffers]
        self.note()

    @torch.no_grad()
    def note(self) -> None:
        self.random = random_state(self.parts.device)
        if self.buffers:
            torch._foreach_copy_(self.kept, self.buffers)  # one call, without synchronisation

    @torch.no_grad()
    def bring_back(self) -> None:
        set_random_state(self.random, self.parts.device)
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(kept)


def write(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of tensors and plain values with its checksum to the disk, as a whole or not at all.

    Raises:
        M2FError: the disk is full or the folder cannot be written. The old file stays.
    """
    try:
        with atomic(path, durable=True) as part:
            with torch_file(part) as file:
                torch.save({"schema_version": SCHEMA_VERSION, **tree}, file)
            checksums.append_digest(part)
    except M2FError as error:
        full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        raise M2FError(error.message, hint="Free some space." if full else None) from error.__cause__


def read(path: Path) -> dict[str, Any]:
    """Read a file of `write`. No code in the file is run. Files of older versions have no checksum to compare.

    Raises:
        WeightsError: the file is missing, damaged, or of a newer m2f.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path} does not exist, or is not a file.")
    try:
        checksums.check_digest(path)
        tree = torch_files.read(path, copied=True)
    except checksums.ChecksumError as error:
        hint = "Copy it again. From a run's weights: m2f train --init RUN --out NEW_RUN."
        raise WeightsError(f"{path} is damaged: {error}.", hint=hint) from error
    except (Damaged, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", hint="It is damaged; copy it again.") from error
    except WeightsError as error:  # it asks for code
        raise WeightsError(f"{path}: {error.message}", hint=error.hint) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("schema_version"), int):
        raise WeightsError(f"{path} is no file that a run of m2f left behind.")
    if tree["schema_version"] > SCHEMA_VERSION:
        raise WeightsError(f"{path} was written by a newer m2f.", hint="Run: pip install --upgrade m2f-cli")
    return tree


def read_run(path: Path, iterations: int) -> dict[str, Any]:
    """Read the state of a run that is resumed.

    Args:
        iterations: iterations of the whole run.

    Raises:
        WeightsError: see `read`, or the file is not the state of such a run.
    """
    tree = read(path)
    kinds = ("model", "optimizer", "scaler", "random")
    wrong = [name for name in kinds if not isinstance(tree.get(name), dict)]
    done = tree.get("iteration")
    if not _is_count(done, iterations):
        raise WeightsError(f"{path} says that {done!r} of {iterations} iterations are done.", hint=_OTHER)
    counts = {"skipped": None, "in_a_row": 0, "evaluated": done}  # older versions did not write the last two
    wrong += [name for name, default in counts.items() if not _is_count(tree.get(name, default), done)]
    wrong += [] if _is_best(tree.get("best"), done) else ["best"]
    if wrong:
        raise WeightsError(f"{path} is not the state of a run: {', '.join(wrong)} is missing or makes no sense.")
    return tree


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_best(best: Any, done: int) -> bool:
    if best == {}:
        return True
    is_whole = isinstance(best, dict) and isinstance(best.get("metric"), str) and _is_count(best.get("iteration"), done)
    has_value = is_whole and isinstance(best.get("value"), (int, float)) and best["value"] == best["value"]
    return has_value and _are_figures(best.get("per_class", {}), depth=3)  # older versions did not write it


def _are_figures(tree: Any, depth: int) -> bool:
    """Return True for numbers, or None, in mappings of a depth, such as metric → class → figure."""
    if not depth:
        return tree is None or type(tree) in (int, float)
    return isinstance(tree, dict) and all(
        isinstance(key, str) and _are_figures(each, depth - 1) for key, each in tree.items()
    )

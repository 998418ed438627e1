"""Loggers of a run's numbers: metrics.jsonl always, and others on request."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from typing_extensions import TypedDict

from ..config.run_folder import METRICS
from ..errors import MissingDependency, unknown_name
from ..runtime import jsonl
from ..runtime.files import atomic, refuse_special, writing_to


class MetricsLine(TypedDict):
    """A line of metrics.jsonl. Its other keys are names of figures, of which each is a number."""

    kind: Annotated[
        Literal["train", "val"],
        "train: a step, with loss, its parts (loss_ce, loss_mask, loss_dice), lr, gradient_norm, images_per_second and "
        "data_share, the share of the time that went into waiting for data. val: an evaluation, with its figures.",
    ]
    iteration: Annotated[int, "train: number of the step, from 0. val: number of steps that were done."]


class Logger(Protocol):
    """Interface of a logger, which takes numbers by name at an iteration. `kind` is "train" or "val"."""

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLinesLogger(jsonl.JsonLines):
    """Logger to a file with a JSON object a line: {"kind", "iteration", …}. A resumed run appends to the same file.

    Args:
        from_iteration: next iteration of a resumed run.
        evaluated: iterations at its last evaluation. None: `from_iteration`.

    Raises:
        M2FError: the file cannot be written.
    """

    def __init__(self, path: Path, *, from_iteration: int = 0, evaluated: int | None = None):
        refuse_special(path)
        if path.exists():
            last = {"train": from_iteration - 1, "val": from_iteration if evaluated is None else evaluated}
            _forget_after(last, path)
        super().__init__(path)

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.append({"kind": kind, "iteration": iteration, **values})


def _forget_after(last: Mapping[str, int], path: Path) -> None:
    """Drop the lines of each kind that will be written again, and an incomplete line of a killed run.

    Raises:
        DataError: a line is damaged.
    """
    hint = "Copy the file again, or remove that line: only the curves need it."
    with writing_to(path):
        kept = b"".join(line for line, entry in jsonl.parsed_lines(path, hint) if _is_before(entry, last))
        if len(kept) != path.stat().st_size:
            with atomic(path, durable=True) as part:
                part.write_bytes(kept)


def _is_before(entry: Any, last: Mapping[str, int]) -> bool:
    try:
        return entry["iteration"] <= last[entry["kind"]]
    except (KeyError, TypeError):
        return False


class TensorBoard:
    """Logger to TensorBoard event files in the run's folder. A resumed run replaces the steps that it repeats."""

    package, module = "tensorboard", "torch.utils.tensorboard"

    def __init__(self, folder: Path, config: dict[str, Any], from_iteration: int = 0):
        self.writer = _module_of(type(self)).SummaryWriter(str(folder), purge_step=from_iteration)

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, iteration)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """Base class for wandb and trackio, which have the same calls. A resumed run is a new one of the same name."""

    package: str
    module: str

    def __init__(self, folder: Path, config: dict[str, Any], from_iteration: int = 0):
        self.tracker = _module_of(type(self))
        with contextlib.redirect_stdout(sys.stderr):  # they print where the run is, but stdout is for results
            self.tracker.init(project="m2f", name=folder.name, config=config, **self.where(folder))

    def where(self, folder: Path) -> dict[str, str]:
        """Return the options of `init` that say where files are kept."""
        return {}

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.tracker.log({f"{kind}/{name}": value for name, value in values.items()}, step=iteration)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.tracker.finish()


class WandB(_Tracker):
    """Logger to Weights & Biases: in the run's folder, and online unless WANDB_MODE=offline."""

    package = module = "wandb"

    def where(self, folder: Path) -> dict[str, str]:
        return {"dir": str(folder)}


class Trackio(_Tracker):
    """Logger to Trackio: in its own database (TRACKIO_DIR), which `trackio show` shows."""

    package = module = "trackio"


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_loggers(names: Iterable[str]) -> None:
    """Check the names of loggers and import their packages, before anything is written.

    Raises:
        ConfigError: a logger does not exist.
        MissingDependency: the package of a logger is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown_name("logger", name, LOGGERS)
        _module_of(LOGGERS[name])


def _module_of(logger: type[TensorBoard | _Tracker]) -> Any:
    try:
        return importlib.import_module(logger.module)
    except ModuleNotFoundError as error:
        raise MissingDependency(logger.package, f"--logger {logger.package}", logger.package) from error


def make_loggers(
    names: Iterable[str], folder: Path, config: dict[str, Any], *, from_iteration: int, evaluated: int | None = None
) -> list[Logger]:
    """Return the loggers of a run: metrics.jsonl, and those in `names`.

    Args:
        from_iteration: next iteration of the run.
        evaluated: iterations at its last evaluation. None: `from_iteration`.

    Raises:
        ConfigError: a logger does not exist.
        MissingDependency: the package of a logger is not installed.
    """
    check_loggers(names)
    first = JsonLinesLogger(folder / METRICS, from_iteration=from_iteration, evaluated=evaluated)
    return [first, *(LOGGERS[name](folder, config, from_iteration) for name in names)]

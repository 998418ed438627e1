"""Where the numbers of a run go: metrics.jsonl always, and whatever else is asked for, through one small interface."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingDependency, unknown_name
from ..runtime import jsonl
from ..runtime.files import atomic, refuse_link, writing_to


class Logger(Protocol):
    """Takes numbers by name at an iteration. `kind` is "train" or "val"."""

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLinesLogger(jsonl.JsonLines):
    """One JSON object a line: {"kind", "iteration", …}. A resumed run goes on in the same file.

    Raises:
        M2FError: the file cannot be written.
    """

    def __init__(self, path: Path, *, from_iteration: int = 0, evaluated: int | None = None):
        refuse_link(path)
        if path.exists():
            last = {"train": from_iteration - 1, "val": from_iteration if evaluated is None else evaluated}
            _forget_after(last, path)
        super().__init__(path)

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.append({"kind": kind, "iteration": iteration, **values})


def _forget_after(last: Mapping[str, int], path: Path) -> None:
    """Drop the lines of each kind that will be written again, and half a line of a run that was killed."""
    with writing_to(path):
        lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _is_before(line, last)]
    if kept != lines:
        with atomic(path, durable=True) as part:
            part.write_bytes(b"".join(kept))


def _is_before(line: bytes, last: Mapping[str, int]) -> bool:
    try:
        entry = jsonl.parse(line)
        return entry["iteration"] <= last[entry["kind"]]
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoard:
    """TensorBoard event files in the run's folder. Steps that a resumed run does again replace the old ones."""

    package, module = "tensorboard", "torch.utils.tensorboard"

    def __init__(self, folder: Path, config: dict[str, Any], from_iteration: int = 0):
        self.writer = _module_of(type(self)).SummaryWriter(str(folder), purge_step=from_iteration)

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, iteration)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """wandb, and trackio which has the same three calls. A resumed run is a further one of the same name there."""

    package: str
    module: str

    def __init__(self, folder: Path, config: dict[str, Any], from_iteration: int = 0):
        self.tracker = _module_of(type(self))
        with contextlib.redirect_stdout(sys.stderr):  # they tell where the run is; stdout is for results
            self.tracker.init(project="m2f", name=folder.name, config=config, **self.where(folder))

    def where(self, folder: Path) -> dict[str, str]:
        """Options of `init` that say where files are kept."""
        return {}

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.tracker.log({f"{kind}/{name}": value for name, value in values.items()}, step=iteration)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.tracker.finish()


class WandB(_Tracker):
    """Weights & Biases: in the run's folder, and online unless WANDB_MODE=offline."""

    package = module = "wandb"

    def where(self, folder: Path) -> dict[str, str]:
        return {"dir": str(folder)}


class Trackio(_Tracker):
    """Trackio: in its own database (TRACKIO_DIR), where `trackio show` finds all runs."""

    package = module = "trackio"


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_loggers(names: Iterable[str]) -> None:
    """Before anything is written.

    Raises:
        ConfigError: a logger that does not exist. MissingDependency: its package is not installed.
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
    """metrics.jsonl, and the loggers asked for.

    Args:
        from_iteration: the next one of a run that goes on.
        evaluated: after how many iterations its last evaluation was; by default after all of them.

    Raises:
        ConfigError: an unknown name; MissingDependency: a package that is not installed.
    """
    check_loggers(names)
    first = JsonLinesLogger(folder / "metrics.jsonl", from_iteration=from_iteration, evaluated=evaluated)
    return [first, *(LOGGERS[name](folder, config, from_iteration) for name in names)]

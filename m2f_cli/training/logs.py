"""Where the numbers of a run go: metrics.jsonl always, and whatever else is asked for, through one small interface."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingDependency, unknown_name


class Logger(Protocol):
    """Takes numbers by name at an iteration. `kind` is "train" or "val"."""

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One json object a line: {"kind", "iteration", …}. A resumed run goes on in the same file."""

    def __init__(self, path: Path, *, from_iteration: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _forget_after(path, from_iteration)
        self.file = path.open("a", encoding="utf-8")

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"kind": kind, "iteration": iteration, **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _forget_after(path: Path, iteration: int) -> None:
    """Drop lines of iterations that will be done again, and half a line of a run that was killed."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["iteration"] < iteration or (entry["kind"] == "val" and entry["iteration"] <= iteration):
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class TensorBoard:
    """TensorBoard event files in the run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingDependency("tensorboard", "--logger tensorboard", "tensorboard") from error
        self.writer = SummaryWriter(str(folder))

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, iteration)

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """wandb, and trackio which has the same three calls."""

    package: str

    def __init__(self, folder: Path, config: dict[str, Any]):
        import importlib

        try:
            self.module = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise MissingDependency(self.package, f"--logger {self.package}", self.package) from error
        self.module.init(project="m2f", name=folder.name, config=config)

    def log(self, kind: str, iteration: int, values: Mapping[str, float]) -> None:
        self.module.log({f"{kind}/{name}": value for name, value in values.items()}, step=iteration)

    def close(self) -> None:
        self.module.finish()


class WandB(_Tracker):
    package = "wandb"


class Trackio(_Tracker):
    package = "trackio"


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def check_names(names: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: a logger that does not exist.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown_name("logger", name, LOGGERS)


def make_loggers(names: Iterable[str], folder: Path, config: dict[str, Any], *, from_iteration: int) -> list[Logger]:
    """metrics.jsonl, and the loggers asked for.

    Raises:
        ConfigError: an unknown name; MissingDependency: a package that is not installed.
    """
    check_names(names)
    first = JsonLines(folder / "metrics.jsonl", from_iteration=from_iteration)
    return [first, *(LOGGERS[name](folder, config) for name in names)]

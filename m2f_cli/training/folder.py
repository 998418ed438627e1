"""Folder of a run: it is claimed, and the configuration and environment of the run are written to it."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import presets as config
from ..config.run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, RESUME
from ..config.schema import Config
from ..errors import ConfigError
from ..runtime import checksums, distributed, documents, jsonl
from ..runtime.files import is_part, remove_parts, write_text, writing_to
from ..runtime.locks import is_lock, locked
from ..runtime.text import json_text
from ..version import __version__
from .options import OF_ONE_START, TrainOptions, read_environment
from .restart import job
from .visualise import draw_batch

if TYPE_CHECKING:
    from .prepare import Run

LR_FINDER = ("lr_finder.json", "lr_finder.png")  # files that may be in a folder before its run


def claim(settings: Config, folder: Path, options: TrainOptions, stack: contextlib.ExitStack) -> Config:
    """Lock the folder for as long as the stack is open, and return the configuration of the run."""
    stack.enter_context(locked(folder, "A training"))
    with writing_to(folder):
        has_weights = any((folder / CHECKPOINTS).glob("*.safetensors"))
    if (state := folder / CHECKPOINTS / RESUME).exists() and not state.is_file():
        raise ConfigError(f"{state} is no file, so that the run cannot go on.", hint="Copy it again.")
    if has_weights and (folder / CONFIG).is_file() and not (folder / CHECKPOINTS / RESUME).is_file():
        raise ConfigError(
            f"The run {folder} has weights but no {CHECKPOINTS}/{RESUME}, so that it cannot go on.",
            hint=f"Copy that file, too, or train on from the weights: m2f train --init {folder} --out NEW_RUN.",
        )
    if options.resume:
        settings = read_settings(folder)
    else:
        refuse_used(folder)
    remove_parts(folder)
    return settings


def _is_of_a_start(path: Path) -> bool:
    """Return True for files that may exist before a run starts, or after one that was killed before it wrote CONFIG."""
    if path.name == ENVIRONMENT and not path.with_name(CONFIG).exists():
        with contextlib.suppress(ConfigError):
            return "m2f" in read_environment(path)
    return path.name in LR_FINDER or is_lock(path) or is_part(path)


def refuse_used(folder: Path) -> None:
    """Refuse a folder in which no run can start. It need not exist.

    Raises:
        ConfigError: it holds a run, or other files.
    """
    with writing_to(folder):
        used = folder.is_dir() and any(not _is_of_a_start(path) for path in folder.iterdir())
    if not used:
        return
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds files already, and no run.", hint="Choose another --out, or empty it.")
    if not (folder / CHECKPOINTS / RESUME).is_file():
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
        content = documents.read_bytes(path, largest=documents.LARGEST_YAML, error=ConfigError)
        checksums.check_yaml(content)
        return config.load(path)
    except checksums.ChecksumError as error:
        hint = "Copy it again; or, if you changed it on purpose, remove its last line."
        raise ConfigError(f"{path} is not as the run wrote it: {error}.", hint=hint) from error
    except ConfigError as error:
        hint = f"Copy it again, or train on from the run's weights: m2f train --init {folder} --out NEW_RUN."
        raise ConfigError(error.message, hint=error.hint or hint) from error


def without_checksum(folder: Path) -> list[str]:
    """Return the files of a run that an older version wrote, and that are not checked for damage."""
    has_checksum = {
        f"{CHECKPOINTS}/{RESUME}": checksums.has_digest,
        CONFIG: lambda path: checksums.is_sealed_yaml(path.read_bytes()),
        ENVIRONMENT: lambda path: checksums.is_sealed(path.read_bytes()),
        METRICS: jsonl.has_checksums,
    }
    with writing_to(folder):
        return [name for name, has in has_checksum.items() if (folder / name).is_file() and not has(folder / name)]


def write_records(run: Run, command: Sequence[str]) -> None:
    """Write the configuration, the environment and the first samples of a run.

    A resumed run only changes options that were given anew.
    """
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
            "job": job(),
            "options": {},
            "notes": run.notes,
            "data": run.identity,
        }
    if _lasting(before.get("options", {})) != _lasting(options):
        text = json_text({**before, "options": options}, indent=2)
        write_text(run.folder / ENVIRONMENT, checksums.sealed(text) + "\n", durable=True)
    if not run.options.resume:  # last: with it, the folder is a run
        write_text(run.folder / CONFIG, checksums.sealed_yaml(config.dump(run.settings)), durable=True)
    if run.is_new:
        draw_batch(run.train_data, run.settings, run.folder / "samples", trust_code=run.options.trust_code)


def _recorded(options: TrainOptions) -> dict[str, Any]:
    """Return the options as plain values that mean the same from any working directory."""
    values = {
        name: str(value.absolute()) if isinstance(value, Path) else value for name, value in vars(options).items()
    }
    if options.init is not None and Path(options.init).exists():
        values["init"] = str(Path(options.init).absolute())
    return json.loads(json.dumps(values))


def _lasting(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OF_ONE_START}

"""Engine "torch": runs `.pt2` files, a program of `torch.export` or a library compiled by AOTInductor."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, DataError, WeightsError
from ...runtime import archives
from ...runtime.devices import choose_device
from .base import KEY, Description, not_ours

_LARGEST_DESCRIPTION = 16 << 20  # bytes; one of 1,203 classes is far smaller
# Keys of `Description.extra`: the names of the outputs in order, and the type of device of a compiled library.
OUTPUTS, COMPILED = "outputs", "compiled_for"


class TorchEngine:
    """Engine of PyTorch. Opening a .pt2 file runs its code, like opening a pickle."""

    runs_code = True

    def __init__(self, path: Path, device: str = "auto"):
        self.description = read_description(path)
        compiled_for = self.description.extra.get(COMPILED)
        self.device = choose_device(device if compiled_for is None or device != "auto" else compiled_for)
        if compiled_for not in (None, self.device.type):
            hint = f"Export it again on a machine with {self.device.type}, or without compiling it."
            raise ConfigError(f"{path} is compiled for {compiled_for}, not for {self.device.type}.", hint=hint)
        try:
            self._run = _compiled(path) if compiled_for else _program(path, self.device)
        except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
            writer = self.description.extra.get("torch", "unknown")
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"PyTorch {torch.__version__} cannot open {path}: {reason.rstrip('.')}.",
                hint=f"It was exported with PyTorch {writer}; the format is tied to the version.",
            ) from error

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.suffix == ".pt2"

    @torch.inference_mode()
    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        answers = self._run(images_BCHW.to(self.device))
        return {name: answer.cpu() for name, answer in zip(self.description.extra[OUTPUTS], answers, strict=True)}


def read_description(path: Path) -> Description:
    """Return the description in a file, without running its code.

    Raises:
        WeightsError: the file is missing, damaged, or not of m2f.
    """
    try:
        archives.refuse_long_directory(path)
        with zipfile.ZipFile(path) as archive:
            # The name of the folder of these entries depends on the version of PyTorch.
            entries = [name for name in archive.namelist() if name.rpartition("/")[2] == KEY and "extra" in name]
            text = _read_entry(archive, entries[0]).decode() if entries else None
    except (DataError, *archives.DAMAGE) as error:
        raise WeightsError(f"{path} is damaged or no .pt2 file: {error}.", hint="Copy or export it again.") from error
    if text is None:
        raise not_ours(path)
    return Description.from_json(text, str(path))


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a short entry. The size that a compressed entry declares may be wrong."""
    with archive.open(name) as file:
        content = file.read(_LARGEST_DESCRIPTION + 1)
    if len(content) > _LARGEST_DESCRIPTION:
        raise ValueError(f"its description has more than {_LARGEST_DESCRIPTION:,} bytes")
    return content


def _program(path: Path, device: torch.device) -> Any:
    program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    with warnings.catch_warnings():
        # PyTorch 2.6 warns of constants, which are no buffers there; their values are right.
        warnings.filterwarnings("ignore", r"(Attempted to insert a get_attr Node|Node \w+ target)", UserWarning)
        return program.module()


def _compiled(path: Path) -> Any:
    return torch._inductor.aoti_load_package(str(path))

"""Engine "openvino": runs folders (model.xml, model.bin) of `m2f export --format openvino`.

It also runs files of `--format onnx` if this engine is named.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, M2FError, MissingDependency, WeightsError
from .base import KEY, Description, not_ours

XML = "model.xml"


class OpenVinoEngine:
    """Engine of OpenVINO. Devices "auto" and "cpu" are the CPU; other names are OpenVINO's own (gpu, gpu.1, npu)."""

    device = torch.device("cpu")  # of the tensors that go in and come out, on any device of OpenVINO

    def __init__(self, path: Path, device: str = "auto"):
        openvino = require("openvino")
        core = openvino.Core()
        name = _known_device(core, device)
        model = read_model(core, xml_of(path))
        self.description = description_of(model, path)
        self._names = [output.any_name for output in model.outputs]  # an output of a compiled model may have more names
        try:
            self._compiled = core.compile_model(model, name, _settings(name, self.description.precision))
        except RuntimeError as error:
            raise WeightsError(f"OpenVINO cannot run {path}: {_reason(error)}.", hint="Export it again.") from error

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.suffix == ".xml" or (path / XML).is_file()

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        try:
            answers = self._compiled([images_BCHW.contiguous().numpy()])
        except RuntimeError as error:
            shape = " x ".join(map(str, images_BCHW.shape))
            raise M2FError(f"OpenVINO failed on an input of {shape}: {_reason(error)}.") from error
        # Copied, because the next images overwrite the memory of these arrays.
        return {name: torch.from_numpy(answers[i].copy()) for i, name in enumerate(self._names)}


def require(name: str, purpose: str = "Running an OpenVINO file") -> Any:
    """Import the module `name` of the extra "openvino".

    Args:
        name: name of the module.
        purpose: use of the module, for the message.

    Raises:
        MissingDependency: the module is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name, purpose, extra="openvino") from error


def xml_of(path: Path) -> Path:
    return path / XML if path.is_dir() else path


def read_model(core: Any, path: Path) -> Any:
    """Read a model of OpenVINO or ONNX.

    Raises:
        WeightsError: the file is missing, damaged, or of a kind that OpenVINO does not read.
    """
    binary = path.with_suffix(".bin")
    if path.suffix == ".xml" and not binary.is_file():
        raise WeightsError(f"{path} has no weights beside it: there is no {binary}.", hint="Copy both files.")
    try:
        return core.read_model(path)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter where its message repeats bytes of the file
        raise WeightsError(f"{path} is damaged or no OpenVINO file: {_reason(error)}.") from error


def description_of(model: Any, path: Path) -> Description:
    """Return the description in a model.

    Raises:
        WeightsError: the file has no description, or a damaged one.
    """
    paths = ([KEY], ["framework", KEY])  # of an OpenVINO file, of an ONNX file
    info = next((each for each in paths if model.has_rt_info(each)), None)
    if info is None:
        raise not_ours(path)
    try:
        text = model.get_rt_info(info).astype(str)
    except (UnicodeDecodeError, RuntimeError) as error:
        raise WeightsError(f"The description in {path} is damaged: it is not text in UTF-8.") from error
    return Description.from_json(text, str(path))


def _known_device(core: Any, device: str) -> str:
    name = "CPU" if device.lower() in ("auto", "cpu") else device.upper()
    if name not in core.available_devices:
        known = ", ".join(each.lower() for each in core.available_devices)
        raise ConfigError(f"OpenVINO has no device {device!r} on this machine.", hint=f"It has: {known}.")
    return name


def _settings(device: str, precision: str) -> dict[str, str | int]:
    if device != "CPU":
        return {} if precision == "fp16" else {"INFERENCE_PRECISION_HINT": "f32"}
    # By default, OpenVINO computes in bf16 where the CPU can, and maps would differ from those that were verified.
    return {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def _reason(error: Exception) -> str:
    """Return the last line of an error. Those before it are locations in the sources of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__

"""The engine of OpenVINO: runs the folder (model.xml, model.bin) that `m2f export --format openvino` writes, and the
file of `--format onnx` where somebody asks for this engine."""

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
    """See `engines.Engine`. device: "auto" and "cpu" are the CPU; other names are OpenVINO's own (gpu, gpu.1, npu)."""

    device = torch.device("cpu")  # where tensors come from and go to, whatever runs the network

    def __init__(self, path: Path, device: str = "auto"):
        openvino = require("openvino")
        core = openvino.Core()
        name = _known_device(core, device)
        model = read_model(core, xml_of(path))
        self.description = description_of(model, path)
        self._names = [output.any_name for output in model.outputs]  # compiled, an output may have others besides
        self._compiled = core.compile_model(model, name, _settings(name, self.description.precision))

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.suffix == ".xml" or (path / XML).is_file()

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        try:
            answers = self._compiled([images_BCHW.contiguous().numpy()])
        except RuntimeError as error:
            shape = " x ".join(map(str, images_BCHW.shape))
            raise M2FError(f"OpenVINO failed on an input of {shape}: {_reason(error)}.") from error
        # Copied: the arrays are the request's own memory, and the next images are written over them.
        return {name: torch.from_numpy(answers[i].copy()) for i, name in enumerate(self._names)}


def require(name: str, purpose: str = "Running an OpenVINO file") -> Any:
    """The module `name` of the extra "openvino".

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name, purpose, extra="openvino") from error


def xml_of(path: Path) -> Path:
    return path / XML if path.is_dir() else path


def read_model(core: Any, path: Path) -> Any:
    """
    Raises:
        WeightsError: missing, damaged, or no file that OpenVINO reads.
    """
    binary = path.with_suffix(".bin")
    if path.suffix == ".xml" and not binary.is_file():
        raise WeightsError(f"{path} has no weights beside it: there is no {binary}.", hint="Copy both files.")
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise WeightsError(f"{path} is damaged or no OpenVINO file: {_reason(error)}.") from error


def description_of(model: Any, path: Path) -> Description:
    """
    Raises:
        WeightsError: the file has no description, or a damaged one.
    """
    place = next((each for each in ([KEY], ["framework", KEY]) if model.has_rt_info(each)), None)  # own, of ONNX
    if place is None:
        raise not_ours(path)
    return Description.from_json(model.get_rt_info(place).astype(str), str(path))


def _known_device(core: Any, device: str) -> str:
    name = "CPU" if device.lower() in ("auto", "cpu") else device.upper()
    if name not in core.available_devices:
        known = ", ".join(each.lower() for each in core.available_devices)
        raise ConfigError(f"OpenVINO has no device {device!r} on this machine.", hint=f"It has: {known}.")
    return name


def _settings(device: str, precision: str) -> dict[str, str | int]:
    if device != "CPU":
        return {} if precision == "fp16" else {"INFERENCE_PRECISION_HINT": "f32"}
    # By default a CPU that can would compute in bf16: three digits, and other maps than were verified.
    return {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}


def _reason(error: Exception) -> str:
    """What OpenVINO says last: before it stand places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__

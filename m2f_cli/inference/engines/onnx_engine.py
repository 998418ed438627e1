"""Engine "onnx": runs files of `m2f export --format onnx` by onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, M2FError, MissingDependency, WeightsError
from .base import KEY, Description, not_ours

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEngine:
    """Engine of onnxruntime, with as many threads as PyTorch. Tensors pass through the CPU's memory."""

    device = torch.device("cpu")

    def __init__(self, path: Path, device: str = "auto"):
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; the warnings of onnxruntime are about its own optimisations
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=_providers(runtime, device))
        except _failures() as error:
            raise WeightsError(
                f"onnxruntime cannot open {path}: {_reason(error)}.",
                hint="Is it a whole ONNX file, with its .data file beside it if it had one? Else export it again.",
            ) from error
        try:
            described = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        except UnicodeDecodeError as error:
            raise WeightsError(f"The description in {path} is damaged: it is not text in UTF-8.") from error
        if described is None:
            raise not_ours(path)
        self.description = Description.from_json(described, str(path))
        self.names = [output.name for output in self.session.get_outputs()]
        [self.input] = [each.name for each in self.session.get_inputs()]

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.suffix.lower() == ".onnx"

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        try:
            values = self.session.run(None, {self.input: images_BCHW.cpu().contiguous().numpy()})
        except _failures() as error:
            shape = " x ".join(map(str, images_BCHW.shape))
            raise M2FError(f"onnxruntime failed on an input of {shape}: {_reason(error)}.") from error
        return {name: torch.from_numpy(value) for name, value in zip(self.names, values, strict=True)}


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependency("onnxruntime", "Running an ONNX file", "onnx") from error
    return onnxruntime


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors of onnxruntime, which have no common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


def _reason(error: Exception) -> str:
    """Return the message of onnxruntime without its prefix (name, number and kind of the error)."""
    line = str(error).strip().splitlines()[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", line)[:300].rstrip(". ")


def _providers(runtime: Any, device: str) -> list[Any]:
    """Return the execution providers of a device.

    Raises:
        ConfigError: onnxruntime has no such device here.
    """
    kind, _, index = device.partition(":")
    present = set(runtime.get_available_providers())
    if kind == "auto":
        kind = "cuda" if _PROVIDERS["cuda"] in present and torch.cuda.is_available() else "cpu"
    if kind not in _PROVIDERS or _PROVIDERS[kind] not in present:
        known = [name for name, provider in _PROVIDERS.items() if provider in present]
        raise ConfigError(
            f"onnxruntime has no device {device!r} here; it has {', '.join(known)}.",
            hint="For CUDA: pip install onnxruntime-gpu, in place of onnxruntime." if kind == "cuda" else None,
        )
    if kind == "cpu":
        return [_PROVIDERS["cpu"]]
    return [(_PROVIDERS[kind], {"device_id": int(index or 0)}), _PROVIDERS["cpu"]]

"""Export of a folder for OpenVINO (model.xml, model.bin), for Intel's CPUs, GPUs and NPUs.

fp16 halves the size of the weights; on a CPU they are fp32 again when the network runs. int8 is done by nncf: weights
and activations are quantised by their ranges on calibration images, with the settings for transformers.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ExportError
from ..inference.base import Prepared
from ..inference.engines import base as engines
from ..inference.engines.openvino_engine import XML, OpenVinoEngine, require
from ..inference.segmenter import Segmenter
from ..structures.images import read_image
from .base import ExportOptions, description_of, refuse_options
from .onnx import OnnxExporter
from .safetensors import refuse_precision

CALIBRATION_IMAGES = 300  # the default of nncf
_PURPOSE = "Exporting for OpenVINO"


class OpenVino:
    """Exporter of folders for OpenVINO."""

    suffix = ""
    packages = ("openvino", "nncf")

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("openvino", options, "opset", "runner", "extra")
        refuse_precision("openvino", options, "fp32", "fp16", "int8")
        require("openvino", _PURPOSE)
        OnnxExporter().check(model, _as_onnx(options))
        if options.precision == "int8":
            require("nncf", "int8 for OpenVINO")
            if not options.images:
                raise ConfigError(
                    "int8 needs images: they show which range each activation has.",
                    hint="Pass --images DIR with a few hundred of the kind that the model is for.",
                )

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        openvino = require("openvino", _PURPOSE)
        converted = convert(model, options)
        if options.precision == "int8":
            converted = _quantised(converted, model, options)
        versions = {"openvino": openvino.__version__, "torch": torch.__version__}
        converted.set_rt_info(description_of(model, options, **versions).to_json(), [engines.KEY])
        path.mkdir()
        openvino.save_model(converted, path / XML, compress_to_fp16=options.precision == "fp16")

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        return engines.EngineSegmenter(OpenVinoEngine(path), source=str(path), task=model.default_task)


def convert(model: Segmenter, options: ExportOptions) -> Any:
    """Convert the network to an OpenVINO model, with the names and shapes of inputs and outputs of `graph`.

    The conversion goes through ONNX, because OpenVINO's own reader of PyTorch programs does not support free sizes.

    Raises:
        ExportError: the network cannot be traced or converted.
    """
    openvino = require("openvino", _PURPOSE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        OnnxExporter().write(model, path, _as_onnx(options))
        try:
            return openvino.Core().read_model(path)
        except Exception as error:  # the errors of its frontend have no common base class
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(f"OpenVINO cannot convert the network of {model.source}: {reason[:300]}") from error


def _as_onnx(options: ExportOptions) -> ExportOptions:
    return replace(options, precision="fp32", images=())


def _quantised(converted: Any, model: Segmenter, options: ExportOptions) -> Any:
    nncf = require("nncf", "int8 for OpenVINO")
    images = list(options.images)[:CALIBRATION_IMAGES]
    dataset = nncf.Dataset(images, network_input(model, options))
    with contextlib.redirect_stdout(sys.stderr):  # nncf prints progress bars; stdout is for results
        return nncf.quantize(
            converted,
            dataset,
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )


def network_input(model: Segmenter, options: ExportOptions) -> Callable[[Path], np.ndarray]:
    """Return a function from an image file to the input (batch, 3, H, W) of an exported file with these options."""
    recorder = _Recorder(description_of(model, options))
    feeder = engines.EngineSegmenter(recorder)

    def make(path: Path) -> np.ndarray:
        prepared = feeder.prepare(read_image(path))
        if model.config.test.slide is not None:  # the first window stands for the image
            height, width = model.config.test.slide.crop
            prepared = Prepared(prepared.pixels_CHW[:, :height, :width], prepared.size)
        feeder.outputs([prepared])
        return recorder.images_BCHW.contiguous().numpy()

    return make


class _Recorder:
    """Engine that records its input and returns no outputs."""

    device = torch.device("cpu")

    def __init__(self, description: engines.Description):
        self.description = description
        self.images_BCHW = torch.empty(0)

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        self.images_BCHW = images_BCHW
        return {}

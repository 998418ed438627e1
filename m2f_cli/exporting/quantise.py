"""int8 for processors: ONNX whose linear layers are quantised when they run, and what any export costs in quality.

Dynamic quantisation needs no pictures: weights are stored as int8, activations get the range that they have at that
moment. It shrinks the file to less than a third where linear layers are most of it (Swin), and leaves convolutions
(ResNet) as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import ExportError, MissingDependency
from ..inference import engines
from ..inference.eval_data import open_for
from ..inference.evaluate import Progress, default_metrics, evaluate, without_nan
from ..inference.segmenter import Segmenter
from .base import Options, description_of, refuse_options
from .safetensors import refuse_precision

LINEAR = ("MatMul", "Gemm")


class OnnxInt8:
    """The exporter "onnx", then onnxruntime's dynamic quantisation of the linear layers, row by row."""

    suffix = ".onnx"
    packages = ("onnx", "onnxruntime")

    def __init__(self) -> None:
        self.full: Any = plugins.get("exporters", "onnx")()

    def check(self, model: Segmenter, options: Options) -> None:
        refuse_options("onnx-int8", options, "postprocess", "runner", "extra")
        refuse_precision("onnx-int8", options, "int8")
        _quantisation()
        self.full.check(model, replace(options, precision="fp32"))

    def write(self, model: Segmenter, path: Path, options: Options) -> None:
        whole = path.with_name(f"fp32-{path.name}")
        self.full.write(model, whole, replace(options, precision="fp32"))
        try:
            quantise_onnx(whole, path)
        finally:
            for file in path.parent.glob(f"{whole.name}*"):  # external data, too
                file.unlink()
        _describe(path, description_of(model, options))

    def open(self, path: Path, model: Segmenter, options: Options) -> Segmenter:
        return self.full.open(path, model, options)


def _describe(path: Path, description: engines.Description) -> None:
    """Say in the file that it is int8; the rest of its metadata is that of the whole one."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    for entry in proto.metadata_props:
        if entry.key == engines.KEY:
            entry.value = description.to_json()
    onnx.save(proto, path)


def quantise_onnx(source: Path, target: Path) -> None:
    """Quantise the linear layers of an ONNX file, each row (output channel) with a scale of its own.

    Raises:
        ExportError: onnxruntime cannot.
    """
    quantisation = _quantisation()
    try:
        quantisation.quantize_dynamic(
            source, target, op_types_to_quantize=list(LINEAR), per_channel=True,
            weight_type=quantisation.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
        )
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"onnxruntime cannot quantise {source.name}: {error}") from error


def measure(
    model: Segmenter, exported: Segmenter, folder: Path, *, split: str = "val", limit: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """What an export costs: figures of the model and of the file on the same annotated pictures, in percent.

    Args:
        folder: of a data set, as `m2f eval --data` takes it.
        limit: only so many pictures.

    Raises:
        DataError, ConfigError: the data set cannot be read, or has other classes.
    """
    task = model.default_task
    data = open_for(model.config, model.categories, folder, split, [task])
    records = data.records[:limit]
    found = {
        name: evaluate(each, records, default_metrics(task, model.categories), on_progress=on_progress).figures
        for name, each in (("model", model), ("exported", exported))
    }
    difference = {name: found["exported"][name] - value for name, value in found["model"].items()}
    about = {"task": task, "data": data.name, "folder": str(folder), "split": split, "pictures": len(records)}
    return without_nan({**about, **found, "difference": difference})


def _quantisation() -> Any:
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependency("onnxruntime", "int8 for ONNX", extra="onnx") from error
    return quantization

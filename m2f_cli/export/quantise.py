"""Dynamic int8 quantisation of ONNX files for CPUs, and measurement of the quality of any export.

Dynamic quantisation needs no images. Weights are stored as int8, and activations are quantised by their range in each
run. It reduces files of mostly linear layers (Swin) most; convolutions (ResNet) are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ExportError, MissingDependency
from ..evaluation.dataset import EvalData, open_for
from ..evaluation.evaluate import default_metrics, evaluate, without_nan
from ..inference.segmenter import Segmenter

LINEAR = ("MatMul", "Gemm")


def quantise_onnx(source: Path, target: Path) -> None:
    """Quantise the linear layers of an ONNX file, each row (output channel) with a scale of its own.

    Raises:
        ExportError: onnxruntime fails.
    """
    quantisation = _quantisation()
    try:
        quantisation.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(LINEAR),
            per_channel=True,
            weight_type=quantisation.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"onnxruntime cannot quantise {source.name}: {error}") from error


def open_measured(model: Segmenter, folder: Path, split: str = "val") -> EvalData:
    """Open the annotated images for the comparison of a model with its file.

    Args:
        model: the model.
        folder: folder of a data set, as for `m2f eval --data`.
        split: split of the data set.

    Raises:
        DataError: the data set cannot be read.
        ConfigError: the data set has other classes.
    """
    return open_for(model.config, model.categories, folder, split, [model.default_task])


def measure(
    model: Segmenter,
    exported: Segmenter,
    data: EvalData,
    *,
    limit: int | None = None,
    on_start: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Evaluate the model and the file on the same annotated images.

    Args:
        model: the model.
        exported: the file.
        data: annotated images, from `open_measured`.
        limit: number of images. None: all.
        on_start: called with a message when the evaluation of either begins.

    Returns:
        Figures of the model and of the file, and their differences, in percent.
    """
    task, records = model.default_task, data.records[:limit]
    figures = {}
    for name, each in (("model", model), ("exported", exported)):
        on_start(f"Measuring the {name.replace('exported', 'file')} on {len(records)} images")
        figures[name] = evaluate(each, records, default_metrics(task, model.categories)).figures
    difference = {name: figures["exported"][name] - value for name, value in figures["model"].items()}
    about = {"task": task, "data": data.name, "folder": str(data.folder), "split": data.split, "pictures": len(records)}
    return without_nan({**about, **figures, "difference": difference})


def _quantisation() -> Any:
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependency("onnxruntime", "int8 for ONNX", extra="onnx") from error
    return quantization

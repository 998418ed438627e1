"""int8 for processors: ONNX whose linear layers are quantised when they run, and what any export costs in quality.

Dynamic quantisation needs no images: weights are stored as int8, activations get the range that they have at that
moment. It shrinks the file to less than a third where linear layers are most of it (Swin), and leaves convolutions
(ResNet) as they are.
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
        ExportError: onnxruntime cannot.
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
    """The annotated images that the quality of a model and of its file are compared on.

    Args:
        folder: of a data set, as `m2f eval --data` takes it.

    Raises:
        DataError, ConfigError: the data set cannot be read, or has other classes.
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
    """What an export costs: figures of the model and of the file on the same annotated images, in percent.

    Args:
        data: from `open_measured`.
        limit: only so many images.
        on_start: is told when either begins.
    """
    task, records = model.default_task, data.records[:limit]
    found = {}
    for name, each in (("model", model), ("exported", exported)):
        on_start(f"Measuring the {name.replace('exported', 'file')} on {len(records)} images")
        found[name] = evaluate(each, records, default_metrics(task, model.categories)).figures
    difference = {name: found["exported"][name] - value for name, value in found["model"].items()}
    about = {"task": task, "data": data.name, "folder": str(data.folder), "split": data.split, "pictures": len(records)}
    return without_nan({**about, **found, "difference": difference})


def _quantisation() -> Any:
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependency("onnxruntime", "int8 for ONNX", extra="onnx") from error
    return quantization

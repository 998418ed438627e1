"""Export to ONNX: `torch.onnx.export` (dynamo) of the graph of `graph.py`, with a description in the file.

fp16: the backbone and the decoder compute in half precision. The pixel decoder, whose sampling locations need more
digits, mask products and post-processing stay in fp32, as in the published mixed precision. Inputs and outputs are of
type fp32; their values are rounded to half precision.

int8: linear layers alone, for CPUs; see `quantise.py`.
"""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ExportError, MissingDependency
from ..inference.engines import base as engines
from ..inference.segmenter import Segmenter
from ..runtime.text import json_text
from ..structures import rgb, tiff
from ..version import __version__
from . import graph
from .base import ExportOptions, description_of, input_size, refuse_options
from .quantise import quantise_onnx
from .safetensors import refuse_precision

OPSET = 18  # LayerNormalization needs 17; TensorRT and onnxruntime have supported 18 for years
NEWEST = 23
PRECISIONS = ("fp32", "fp16", "int8")
IN_HALF = ("model.backbone", "model.decoder")  # parts of graph.Exported that compute in half precision
LARGE = 2_000_000_000  # bytes; protobuf ends at 2 GiB, so larger weights go into a file of their own
FOLDED = 4096  # numbers: larger constants (positions, windows) stay formulas, because they would fill the file
RUNNER = "run_onnx.py"
_FUTURE = "from __future__ import annotations\n"
_READER = "from m2f_cli.structures.rgb import "  # beginning of the line that the code replaces

# Operators that a compiler refuses or computes wrongly. TensorRT fuses GridSample around deformable attention to wrong
# numbers. It does not have shapes that depend on values, strings, and sorting of more than 3840 numbers.
AVOIDED = (
    "GridSample",
    "NonZero",
    "Unique",
    "Compress",
    "Loop",
    "Scan",
    "If",
    "SequenceConstruct",
    "DeformConv",
    "StringNormalizer",
    "NonMaxSuppression",
    "Multinomial",
    "RandomNormal",
    "RandomUniform",
)


TAKES_ANY_SIZE = hasattr(torch.compiler, "is_exporting")  # torch 2.7; 2.6 needs concrete numbers in resizes


class OnnxExporter:
    """Exporter of ONNX files."""

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("onnx", options, "extra")
        for package in self.packages:
            if find_spec(package) is None:
                raise MissingDependency(package, "Exporting to ONNX", "onnx")
        refuse_precision("onnx", options, *PRECISIONS)
        if options.runner and model.config.test.slide is not None:
            raise ConfigError(
                f"{model.source} is tested in windows, which the program of --with-runner does not have.",
                hint="Leave --with-runner out: m2f predict --model FILE.onnx has windows.",
            )
        if options.opset is not None and not OPSET <= options.opset <= NEWEST:
            raise ConfigError(
                f"The opset {options.opset} will not do: it is from {OPSET} to {NEWEST}.", hint=f"Use --opset {OPSET}."
            )
        if None in (input_size(model, options), options.batch) and not TAKES_ANY_SIZE:
            raise ConfigError(
                f"A graph for any size or batch is more than PyTorch {torch.__version__} can translate to ONNX.",
                hint="Pass --size H W (and --batch N), or update PyTorch to 2.7 or newer.",
            )

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        opset = options.opset or OPSET
        with graph.deployed(model):
            program = graph.exported_program(model, options)
        proto = _translated(program, model, options, opset)
        if options.precision == "fp16":
            proto = _halved(proto)
        _slim(proto)
        described = description_of(model, options, opset=opset, torch=torch.__version__)
        _describe(proto, model, described)
        if options.precision == "int8":
            _save_quantised(proto, path)
        else:
            save_proto(proto, path)
        if options.runner:
            path.with_name(RUNNER).write_text(runner_source(), encoding="utf-8")

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        return engines.load(path, engine="onnx", device="cpu", task=model.default_task)


def runner_source() -> str:
    """Return a program that runs an exported file without m2f. It contains the code by which m2f reads images."""
    template = Path(__file__).with_name("runner_template.py").read_text(encoding="utf-8")
    sources = [inspect.getsource(module).partition(_FUTURE)[2].strip("\n") for module in (tiff, rgb)]
    code = "\n\n\n".join(re.sub(r"^from \.tiff import .*\n\n", "", source, flags=re.MULTILINE) for source in sources)
    before, line, after = template.partition(_READER)
    if not (line and all(sources)):
        raise RuntimeError("the template of the runner has no place for the code that reads images")
    rest = after.partition("\n")[2]
    return f"{before}# --- how m2f reads images ---\n\n{code}\n\n\n# --- the network ---\n{rest}"


def _save_quantised(proto: Any, path: Path) -> None:
    """Write an int8 file from a temporary one in full precision, because the quantiser reads and writes files."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        whole = Path(folder) / path.name
        save_proto(proto, whole)
        quantise_onnx(whole, path)


def _translated(program: torch.export.ExportedProgram, model: Segmenter, options: ExportOptions, opset: int) -> Any:
    from onnxscript.optimizer import optimize

    try:
        with _quiet():
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[graph.INPUT],
                output_names=graph.output_names(options),
                optimize=False,
                verbose=False,
            )
            optimize(translated.model, output_size_limit=FOLDED)
            return translated.model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = next((line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
        raise ExportError(
            f"The network of {model.source} has an operator that ONNX {opset} lacks: {reason[:300]}",
            hint=f"A newer --opset (up to {NEWEST}) may have it.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence remarks of exporter and quantiser, which uses the root logger, on their optimisations."""
    loggers = [logging.getLogger(name) for name in (None, "onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def operators(proto: Any) -> set[str]:
    """Return the names of the operators of a model and of its functions."""
    return {node.op_type for node in _nodes(proto)}


def _nodes(proto: Any) -> Iterable[Any]:
    yield from proto.graph.node
    for function in proto.functions:
        yield from function.node


def _halved(proto: Any) -> Any:
    """Convert the parts of IN_HALF to half precision."""
    import onnx_ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    in_full = [node.name for node in proto.graph.node if not _scopes(node) & set(IN_HALF)]
    blocked = [*DEFAULT_OP_BLOCK_LIST, "Sin", "Cos", "Range", "LayerNormalization"]
    halved = convert_float_to_float16(proto, keep_io_types=True, op_block_list=blocked, node_block_list=in_full)
    nodes = {node.output[0]: node for node in halved.graph.node}  # the converter adds some casts twice, under one name
    ordered = list(nodes.values())
    del halved.graph.node[:]
    halved.graph.node.extend(ordered)
    unsorted = onnx_ir.serde.deserialize_model(halved)  # the casts are at the end
    unsorted.graph.sort()
    return onnx_ir.serde.serialize_model(unsorted)


def _scopes(node: Any) -> set[str]:
    """Return the modules that a node is from: {"", "model", "model.backbone", …}."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return {name.strip(" '\"") for name in entry.value.strip("[]").split(",")}
    return set()


def _slim(proto: Any) -> None:
    """Remove file names, stack traces and shapes of intermediate values, which the exporter adds."""
    for node in _nodes(proto):
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]


def _describe(proto: Any, model: Segmenter, described: engines.Description) -> None:
    """Add the description, and the most used settings under plain names."""
    import json

    config = model.config
    plain = {
        engines.KEY: described.to_json(),
        "method": config.model.method,
        "task": ",".join(config.test.tasks),
        "classes": json_text([category.name for category in model.categories]),
        "mean": json.dumps(config.input.mean),
        "std": json.dumps(config.input.std),
        "object_threshold": str(config.test.object_threshold),
        "overlap_threshold": str(config.test.overlap_threshold),
    }
    del proto.metadata_props[:]
    for key, value in plain.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name, proto.producer_version = "m2f", __version__
    proto.doc_string = f"{config.model.method}: {model.source}"


def save_proto(proto: Any, path: Path) -> None:
    import onnx

    external = {}
    if proto.ByteSize() > LARGE:
        external = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": f"{path.name}.data"}
    onnx.save_model(proto, path, **external)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"The ONNX file is not valid: {error}") from error

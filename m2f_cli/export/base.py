"""Contract of exporters, and the steps of every export: write the file, run it, compare it, rename it.

An exporter is a class of the group "exporters" of plugins.py (or of another package's entry point "m2f.exporters"). Its
constructor has no arguments. An exporter writes and opens files; this module does everything else.
"""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from .. import plugins
from ..errors import ConfigError, DataError
from ..evaluation.dataset import EvalData
from ..inference.base import innermost
from ..inference.engines.base import Description, described
from ..inference.mask_rendering import Size
from ..inference.segmenter import Segmenter
from ..results.writers import write_json
from ..runtime import random_state
from ..structures import Task
from ..version import __version__
from ..weights.push import check_push, push_files
from .destination import check_destination, record_path, staged_file
from .quantise import measure, open_measured
from .verify import ExportComparison, Tolerance, check, compare, default_cases, tolerance_for

SCHEMA_VERSION = 1
_FLAGS = {"extra": "option", "runner": "with-runner"}  # names on the command line that differ from the fields


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. An exporter refuses options that it does not support (`Exporter.check`).

    Attributes:
        size: fixed (height, width) of the input. None: the one that all images have (`test.canvas`), if there is
            one; else any multiples of 32 (or of the model's divisor).
        batch: fixed number of images per run. None: any.
        precision: "fp32", "fp16" or "int8".
        postprocess: task whose final maps the file returns as well.
        normalise: put (x - mean) / std into the file; its input is RGB from 0 to 255 then.
        opset: version of the operators of ONNX. None: the exporter's default.
        runner: write a small program that runs the file beside it.
        images: images that the file is compared on, and calibrated with where a format needs that.
        tolerance: largest differences. None: those of the precision.
        measure: folder of annotated images on which the quality of model and file is measured.
        measure_limit: number of these images. None: all.
        extra: options of one format; plain values.
        push: repository OWNER/NAME of the Hugging Face hub to which the checked files are uploaded. None: nowhere.
        private: make that repository private.
    """

    size: Size | None = None
    batch: int | None = 1
    precision: str = "fp32"
    postprocess: Task | None = None
    normalise: bool = False
    opset: int | None = None
    runner: bool = False
    images: Sequence[Path] = ()
    tolerance: Tolerance | None = None
    measure: Path | None = None
    measure_limit: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    push: str | None = None
    private: bool = False


class Exporter(Protocol):
    """Writer of one format.

    Attributes:
        suffix: suffix of the file, such as ".onnx"; "" for a format that is a folder.
        packages: distributions whose versions are recorded.

    A folder that the Hugging Face hub takes as a model has `is_for_hub = True`, too.
    """

    suffix: str
    packages: Sequence[str]

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        """Refuse an export that is not possible, before anything is written.

        Raises:
            ConfigError: the format does not support an option.
            MissingDependency: an extra is not installed.
            ExportError: the format cannot express the network.
        """

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        """Write the file.

        Args:
            model: the model, in fp32 on the CPU.
            path: the final name of the file in a temporary folder. Other files (external data, a runner) beside it are
                moved together with it.
            options: options of the export.

        Raises:
            ExportError: the network cannot be written.
        """

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """Open the written file on the CPU: `engines.load(path, device="cpu")` where an engine runs it."""


@dataclass(frozen=True)
class ExportStep:
    """Progress of an export.

    Attributes:
        message: the current step.
    """

    message: str


@dataclass(frozen=True)
class ExportReport:
    """Outcome of an export. `to_dict` returns the content of export.json.

    Attributes:
        path: the file or folder.
        format: name of the format.
        model: origin of the model.
        options: options of the export.
        comparisons: differences from the model on every input.
        tolerance: largest differences that were allowed.
        bytes: size of all files together.
        weight_bytes: size of the parameters and buffers of the network.
        seconds: duration of the export.
        versions: version of each package.
        quality: figures of `quantise.measure`; None where they were not asked for.
        pushed: address of the repository that the files were uploaded to.
    """

    path: Path
    format: str
    model: str
    options: ExportOptions
    comparisons: list[ExportComparison]
    tolerance: Tolerance
    bytes: int
    weight_bytes: int
    seconds: float
    versions: dict[str, str]
    quality: dict[str, Any] | None = None
    pushed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        elsewhere = ("images", "tolerance", "measure", "measure_limit", "push", "private")
        options = {key: value for key, value in asdict(self.options).items() if key not in elsewhere}
        return {
            "schema_version": SCHEMA_VERSION,
            "file": self.path.name,
            "format": self.format,
            "model": self.model,
            "options": {**options, "extra": dict(self.options.extra)},
            "tolerance": asdict(self.tolerance),
            "largest": worst(self.comparisons),
            "comparisons": [each.to_dict() for each in self.comparisons],
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "seconds": round(self.seconds, 3),
            "versions": self.versions,
            "quality": self.quality,
        }


def worst(comparisons: Sequence[ExportComparison]) -> dict[str, float]:
    """Return the largest value of each figure over all inputs."""
    figures = [each.figures() for each in comparisons]
    names = {name for each in figures for name in each}
    return {name: max(each[name] for each in figures if name in each) for name in sorted(names)}


def export(
    model: Segmenter,
    path: str | Path,
    format: str,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    on_step: Callable[[ExportStep], None] | None = None,
    trust_code: bool = False,
    **fields: Any,
) -> ExportReport:
    """Write a model in a format, compare the file with the model, and only then give it its final name.

    A record export.json is written too, with differences on every input, tolerance, sizes and versions.

    Args:
        model: the model to export.
        path: the file, with the suffix of the format; or the folder, for a format that is a folder.
        format: a name of the group "exporters", or with `trust_code` "module:object".
        options: options of the export.
        overwrite: replace the file, or the files of an earlier export of this format to this folder; others stay.
        on_step: called at the beginning of each step.
        trust_code: allow `format` to be "module:object".
        fields: fields of `ExportOptions` that replace those of `options`, such as `size=(512, 512)`.

    Raises:
        ConfigError: `path` exists and is no such export or is not to be replaced, another process writes there, or
            the format does not support an option.
        MissingDependency: the format needs an extra.
        ExportError: the file cannot be written, or differs from the model by more than the tolerance. No file is left.
            Or it cannot be pushed; then it is complete.
    """
    started, path, options = time.perf_counter(), Path(path), replace(options or ExportOptions(), **fields)

    def tell(message: str) -> None:
        if on_step is not None:
            on_step(ExportStep(message))

    with plugins.using(format):
        exporter: Exporter = plugins.get("exporters", format, trust_code=trust_code)()
    plain = _in_fp32(innermost(model))
    _check_request(plain, path, format, exporter, options, overwrite)
    data = _measured(plain, options)
    tolerance = options.tolerance or tolerance_for(options.precision)
    with random_state.kept(), staged_file(path, overwrite) as part:
        tell(f"Writing {format}")
        exporter.write(plain, part, options)
        size = _size_of(part.parent)
        tell("Running what was written")
        exported = exporter.open(part, plain, options)
        comparisons = compare(plain, exported, default_cases(plain, exported, options.images), tolerance, on_case=tell)
        check(comparisons, tolerance, path.name)
        limit = options.measure_limit
        quality = None if data is None else measure(plain, exported, data, limit=limit, on_start=tell)
        del exported  # some runtimes hold their file open
        report = ExportReport(
            path,
            format,
            model.source,
            options,
            comparisons,
            tolerance,
            size,
            weight_bytes(plain),
            time.perf_counter() - started,
            _versions(exporter.packages),
            quality,
        )
        write_json(record_path(part, is_folder=not exporter.suffix), report.to_dict())
        names = [file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file()]
    if options.push is None:
        return report
    tell(f"Pushing to {options.push}")
    return replace(report, pushed=push_files(path, names, options.push, private=options.private))


def description_of(model: Segmenter, options: ExportOptions, **extra: Any) -> Description:
    """Return the description of a file with these options; see `inference.engines`."""
    return described(
        model,
        size=input_size(model, options),
        batch=options.batch,
        normalised=options.normalise,
        precision=options.precision,
        postprocess=options.postprocess,
        extra={**extra},
    )


def input_size(model: Segmenter, options: ExportOptions) -> Size | None:
    """Return the fixed (height, width) of the input of an exported file; None for any."""
    return options.size or model.config.test.canvas


def refuse_options(format: str, options: ExportOptions, *names: str) -> None:
    """Refuse options that a format does not have.

    Args:
        format: name of the format.
        options: options of the export.
        names: fields of `options` that the format does not have.

    Raises:
        ConfigError: one of these fields is set.
    """
    unset = ExportOptions()
    for name in names:
        if getattr(options, name) != getattr(unset, name):
            flag = _FLAGS.get(name, name)
            other = ", or choose --format onnx" if format != "onnx" and name != "extra" else ""
            raise ConfigError(f"The format {format} has no --{flag}.", hint=f"Leave it out{other}.")


def check_push_options(exporter: Exporter | type[Exporter], format: str, options: ExportOptions) -> None:
    """Refuse an upload that is not possible, before anything is computed.

    Raises:
        ConfigError: the format is not for the hub, or see `weights.push.check_push`.
    """
    if options.push is None:
        if options.private:
            raise ConfigError("--private is for --push OWNER/NAME.", hint="Leave it out, or say where to push.")
        return
    if not getattr(exporter, "is_for_hub", False):
        raise ConfigError(
            f"The format {format} cannot be pushed to the Hugging Face hub.",
            hint="Use --format huggingface, or leave --push out.",
        )
    check_push(options.push)


def weight_bytes(model: Segmenter) -> int:
    """Return the size in bytes of the parameters and buffers of a network."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.model.state_dict().values())


def _in_fp32(model: Segmenter) -> Segmenter:
    """Return the same model in fp32 on the CPU. Files are written from it and compared with it."""
    if model.model is None or (model.precision == "fp32" and model.device.type == "cpu"):
        return model
    network = model.model if model.device.type == "cpu" else copy.deepcopy(model.model)
    settings = {"task": model.default_task, "source": model.source, "notes": model.notes}
    return Segmenter(network, model.config, model.categories, **settings)


# --- parts ------------------------------------------------------------------------------------------------------------


def _measured(model: Segmenter, options: ExportOptions) -> EvalData | None:
    """Open the annotated images of `options.measure`.

    Raises:
        DataError: the folder does not exist or cannot be read.
        ConfigError: the data set has other classes.
    """
    if options.measure is None:
        return None
    if not options.measure.is_dir():
        raise DataError(f"There is no folder {options.measure} to measure the quality on.")
    return open_measured(model, options.measure)


def _check_request(
    model: Segmenter, path: Path, format: str, exporter: Exporter, options: ExportOptions, overwrite: bool
) -> None:
    check_push_options(exporter, format, options)
    if model.model is None:
        raise ConfigError(f"{model.source} is an exported file already.", hint="Export the checkpoint that it is of.")
    if exporter.suffix and path.suffix != exporter.suffix:
        raise ConfigError(f"The file of this format ends in {exporter.suffix}, and {path} does not.")
    check_destination(path, format, is_folder=not exporter.suffix, overwrite=overwrite)
    check_size(model, options)
    if options.postprocess not in (None, *model.tasks):
        raise ConfigError(
            f"The model {model.source} does {', '.join(model.tasks)} segmentation, not {options.postprocess!r}.",
            hint=f"Use --postprocess {model.tasks[0]}.",
        )
    exporter.check(model, options)


def check_size(model: Segmenter, options: ExportOptions) -> None:
    """Refuse a fixed size or batch that the network cannot have.

    Raises:
        ConfigError: the size is no multiple of the network's divisor, or the batch is below 1.
    """
    multiple = described(model).multiple
    if options.size is not None and any(edge < 1 or edge % multiple for edge in options.size):
        height, width = (max(multiple, round(edge / multiple) * multiple) for edge in options.size)
        raise ConfigError(
            f"The size {options.size[0]} x {options.size[1]} is no multiple of {multiple} in both directions.",
            hint=f"The nearest is --size {height} {width}.",
        )
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"A batch has at least one image, not {options.batch}.")


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"m2f": __version__, "python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions

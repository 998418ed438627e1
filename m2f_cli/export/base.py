"""What an exporter is, and the one way in which all of them run: write, run what was written, compare, rename.

An exporter is a class of the group "exporters" of plugins.py (or of another package's entry point "m2f.exporters"),
made without arguments. It writes and opens; everything else happens here.
"""

from __future__ import annotations

import copy
import filecmp
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from .. import plugins
from ..errors import ConfigError, DataError, ExportError, M2FError
from ..evaluation.dataset import EvalData
from ..inference.base import innermost
from ..inference.engines.base import RECORD, Description, described
from ..inference.mask_rendering import Size
from ..inference.segmenter import Segmenter
from ..results.writers import write_json
from ..runtime import documents, random_state
from ..runtime.files import share_as_usual
from ..runtime.locks import is_lock, locked, staged
from ..structures import Task
from ..version import __version__
from .quantise import measure, open_measured
from .verify import ExportComparison, Tolerance, check, compare, default_cases, tolerance_for

SCHEMA_VERSION = 1
_FLAGS = {"extra": "option", "runner": "with-runner"}  # of the command line, where they are called differently


@dataclass(frozen=True)
class ExportOptions:
    """What the file is to be. An exporter refuses what it cannot do (`Exporter.check`), it never ignores it.

    size: (height, width) of the input where it is to be fixed; None: any multiple of 32 (or of the model's divisor).
    batch: images per run where it is to be fixed; None: any.
    precision: "fp32", "fp16" or "int8".
    postprocess: the task whose final maps the file is to give as well.
    normalise: whether (x - mean) / std goes inside: the input is RGB from 0 to 255 then.
    opset: of ONNX; None: the exporter's own choice.
    runner: whether a small program that runs the file stands beside it.
    images: real ones that the file is compared on, and calibrated with where a format needs that.
    tolerance: None: that of the precision.
    measure: a folder of annotated images on which the quality of model and file is measured; measure_limit: on the
        first so many of them alone.
    extra: what one format alone knows; plain values.
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


class Exporter(Protocol):
    """Writes one format.

    suffix: of the file, such as ".onnx"; "" for a format that is a folder.
    packages: distributions whose versions belong into the record.
    """

    suffix: str
    packages: Sequence[str]

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        """Raise what speaks against it before anything is made: ConfigError for options that the format does not
        have, MissingDependency for an extra that is not installed, ExportError for a network that it cannot take."""

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        """Write to `path`, which is in a folder of its own under the final name: other files (external data, a runner)
        may be put beside it and travel along. Raise ExportError where the network cannot be written."""

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        """What was written, ready to run: `engines.load(path, device="cpu")` where an engine runs it."""


@dataclass(frozen=True)
class ExportStep:
    """Progress: what happens now."""

    message: str


@dataclass(frozen=True)
class ExportReport:
    """What came of an export: the file, and how it compares with the model. `to_dict` is the tree of export.json.

    quality: what `quantise.measure` says, where it was asked for.
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

    def to_dict(self) -> dict[str, Any]:
        elsewhere = ("images", "tolerance", "measure", "measure_limit")
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
    """The largest of each figure over all inputs."""
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
    """Write a model in a format, compare what was written with the model, and only then give it its name.

    Beside it comes export.json: differences on every input, tolerance, sizes, versions.

    Args:
        path: the file, or the folder of a format that is one. Its suffix is that of the format.
        format: a name of the group "exporters", or with `trust_code` "module:object".
        overwrite: replace the file, or the files of an earlier export of this format to this folder; others stay.
        fields: of `ExportOptions`, over `options`: `size=(512, 512)`, `postprocess="panoptic"`.

    Raises:
        ConfigError: there is something already that is no such export, or was not to be replaced; another process is
            at work there; or the format cannot do what the options say.
        MissingDependency: the format needs an extra.
        ExportError: it cannot be written, or differs from the model more than the tolerance; nothing is left behind.
    """
    started, path, options = time.perf_counter(), Path(path), replace(options or ExportOptions(), **fields)
    tell = on_step or (lambda step: None)
    with plugins.using(format):
        exporter: Exporter = plugins.get("exporters", format, trust_code=trust_code)()
    plain = _in_fp32(innermost(model))
    _check_request(plain, path, format, exporter, options, overwrite)
    data = _measured(plain, options)
    with random_state.kept(), _staging(path, overwrite) as part:
        tell(ExportStep(f"Writing {format}"))
        exporter.write(plain, part, options)
        size = _size_of(part.parent)
        tell(ExportStep("Running what was written"))
        exported = exporter.open(part, plain, options)
        cases = default_cases(plain, exported, options.images)
        tolerance = options.tolerance or tolerance_for(options.precision)
        comparisons = compare(plain, exported, cases, tolerance, on_case=lambda text: tell(ExportStep(text)))
        check(comparisons, tolerance, path.name)
        quality = None
        if data is not None:
            limit = options.measure_limit
            quality = measure(plain, exported, data, limit=limit, on_start=lambda text: tell(ExportStep(text)))
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
        write_json(_record_of(part, exporter), report.to_dict())
        del exported  # some runtimes hold their file open
    return report


def description_of(model: Segmenter, options: ExportOptions, **extra: Any) -> Description:
    """What a file made with these options says of itself; see `inference.engines`."""
    return described(
        model,
        size=options.size,
        batch=options.batch,
        normalised=options.normalise,
        precision=options.precision,
        postprocess=options.postprocess,
        extra={**extra},
    )


def refuse_options(format: str, options: ExportOptions, *names: str) -> None:
    """
    Raises:
        ConfigError: one of the named options is set, and `format` has no such thing.
    """
    unset = ExportOptions()
    for name in names:
        if getattr(options, name) != getattr(unset, name):
            flag = _FLAGS.get(name, name)
            other = ", or choose --format onnx" if format != "onnx" and name != "extra" else ""
            raise ConfigError(f"The format {format} has no --{flag}.", hint=f"Leave it out{other}.")


def weight_bytes(model: Segmenter) -> int:
    """Parameters and buffers, as the network holds them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.model.state_dict().values())


def _in_fp32(model: Segmenter) -> Segmenter:
    """Return the same model in fp32 on the CPU, which files are written from and compared with."""
    if model.model is None or (model.precision == "fp32" and model.device.type == "cpu"):
        return model
    network = model.model if model.device.type == "cpu" else copy.deepcopy(model.model)
    settings = {"task": model.default_task, "source": model.source, "notes": model.notes}
    return Segmenter(network, model.config, model.categories, **settings)


# --- parts ------------------------------------------------------------------------------------------------------------


def _measured(model: Segmenter, options: ExportOptions) -> EvalData | None:
    """
    Raises:
        DataError, ConfigError: `options.measure` has no annotated images for this model.
    """
    if options.measure is None:
        return None
    if not options.measure.is_dir():
        raise DataError(f"There is no folder {options.measure} to measure the quality on.")
    return open_measured(model, options.measure)


def _check_request(
    model: Segmenter, path: Path, format: str, exporter: Exporter, options: ExportOptions, overwrite: bool
) -> None:
    if model.model is None:
        raise ConfigError(f"{model.source} is an exported file already.", hint="Export the checkpoint that it is of.")
    if exporter.suffix and path.suffix != exporter.suffix:
        raise ConfigError(f"The file of this format ends in {exporter.suffix}, and {path} does not.")
    if path.is_dir() and not exporter.suffix:
        _check_folder(path, format, overwrite)
    else:
        _check_file(path, overwrite)
        if exporter.suffix and _format_in(path.with_name(RECORD)) is None:
            _check_file(path.with_name(RECORD), overwrite)
    check_size(model, options)
    if options.postprocess not in (None, *model.tasks):
        raise ConfigError(
            f"The model {model.source} does {', '.join(model.tasks)} segmentation, not {options.postprocess!r}.",
            hint=f"Use --postprocess {model.tasks[0]}.",
        )
    exporter.check(model, options)


def _check_folder(path: Path, format: str, overwrite: bool) -> None:
    """
    Raises:
        ConfigError: the folder holds something, and is no export of this format or not to be replaced.
    """
    if all(is_lock(each) for each in path.iterdir()):
        return
    if _format_in(path / RECORD) != format:
        raise ConfigError(
            f"The folder {path} is not empty, and no earlier export as {format}: there is no {RECORD} that says so.",
            hint="Choose another --out: --overwrite replaces only what such an export wrote.",
        )
    if not overwrite:
        raise ConfigError(f"{path} exists already.", hint="Choose another --out, or pass --overwrite.")


def _check_file(path: Path, overwrite: bool) -> None:
    """
    Raises:
        ConfigError: a folder is where the file is to be, or something that is not to be replaced.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, and the export writes a file there.", hint="Choose another --out.")
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(f"{path} exists already.", hint="Choose another --out, or pass --overwrite.")


def _format_in(record: Path) -> str | None:
    """The format that an export.json is about; None for what is none."""
    if not record.is_file():
        return None
    try:
        tree = documents.read_json(record)
    except DataError:
        return None
    is_record = isinstance(tree, dict) and {"schema_version", "file", "format", "comparisons"} <= tree.keys()
    return tree["format"] if is_record and isinstance(tree["format"], str) else None


def check_size(model: Segmenter, options: ExportOptions) -> None:
    """
    Raises:
        ConfigError: a fixed size that is no multiple of what the network needs, or a batch below 1.
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


@contextmanager
def _staging(path: Path, overwrite: bool) -> Iterator[Path]:
    """`path` in a hidden folder beside it; what is in that folder at the end moves to where `path` is.

    Raises:
        ConfigError: another process is at work there. ExportError: it cannot be written: no space, no permission.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staged(path, "An export"))
            stack.enter_context(locked(path, "Another command") if path.is_dir() else nullcontext())
        except ConfigError:  # another process is at work
            raise
        except M2FError as error:
            raise ExportError(error.message) from error
        yield from _moved_from(folder, path, overwrite)


def _moved_from(folder: Path, path: Path, overwrite: bool) -> Iterator[Path]:
    try:
        yield folder / path.name
        share_as_usual(folder)
        _move(folder, path, overwrite)
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}.") from error


def _move(folder: Path, path: Path, overwrite: bool) -> None:
    """Put what was written where it belongs. Whatever else lies there stays.

    Companions come first: when the file itself is there, all of it is. Of a folder, the record comes last.

    Raises:
        ConfigError: something else lies where a companion is to be. Nothing has been moved then.
    """
    part = folder / path.name
    inside = {part: path}
    if part.is_dir() and path.is_dir():
        inside = {each: path / each.relative_to(part) for each in part.rglob("*") if not each.is_dir()}
    beside = {each: path.parent / each.name for each in folder.iterdir() if each != part}
    for source, target in {**beside, **inside}.items():
        if source in inside or not (target.name == RECORD or _is_same(source, target)):
            _check_file(target, overwrite)
    for source, target in [*beside.items(), *sorted(inside.items(), key=lambda move: move[0].name == RECORD)]:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _is_same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


def _record_of(part: Path, exporter: Exporter) -> Path:
    """export.json: beside a file, inside a folder."""
    return part.parent / RECORD if exporter.suffix else part / RECORD


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"m2f": __version__, "python": platform.python_version()}
    for package in ("torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found

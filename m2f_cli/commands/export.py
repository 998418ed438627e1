"""m2f export: a model as a file for another runtime, compared with the model before it gets its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..errors import ConfigError, unknown_name
from .trust import TrustCode

if TYPE_CHECKING:
    from ..export.base import ExportOptions, ExportReport

TASKS = ("panoptic", "instance", "semantic")
PRECISIONS = ("fp32", "fp16", "int8")
SHOWN = ("class_logits.largest_share", "mask_logits.largest_share", "mask_logits.mean", "moved")


def export(
    model: Annotated[str, typer.Option(metavar="REF", help="Preset, run folder, checkpoint, Hugging Face repository.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, openvino, torch, huggingface, detectron2, …")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The file or folder; by default runs/export/<name>/model.onnx")
    ] = None,
    postprocess: Annotated[
        str | None,
        typer.Option(metavar="TASK", help=f"Final maps as further outputs: {', '.join(TASKS)}. Not in every format."),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="A fixed input size, multiples of 32; default: any such size."),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N", help="Pictures per run, or dynamic.")] = "1",
    precision: Annotated[
        str, typer.Option(metavar="FORMAT", help=f"Number format of the file: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX; default 18.")] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Normalisation inside: the input is RGB from 0 to 255.")
    ] = False,
    with_runner: Annotated[
        bool, typer.Option("--with-runner", help="ONNX: a small program beside the file that runs it without PyTorch.")
    ] = False,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE", help="Real pictures to compare (and calibrate) with; repeatable. Default: generated ones."
        ),
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Annotated pictures: measure what the export costs in quality, on their val."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure on the first N pictures only.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="X", help="Largest difference of logits, as a share of their range; default: 0.001 in fp32."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change thresholds and test size, such as test.object_threshold=0.5; repeatable.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="What one format alone knows; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="export.json on stdout.")] = False,
) -> None:
    """Write a model for another runtime, and prove it.

    What was written is run on several inputs and compared with the model. Out of tolerance: exit code 5, and no file.
    """
    _one_of("task", postprocess, TASKS)
    _one_of("precision", precision, PRECISIONS)
    if ":" not in format_:
        _one_of("format", format_, tuple(plugins.names("exporters")))
    wrong = [pair for pair in set_ or () if not pair.startswith("test.")]
    if wrong:
        raise ConfigError(f"--set {wrong[0]} has no effect on an export.", hint="It may change what is below test.")
    if limit is not None and measure is None:
        raise ConfigError("--limit is for --measure DIR.", hint="Leave it out, or say where to measure.")
    batch_size = _batch(batch)
    extra = dict(_pair(text) for text in option or ())
    target: Any = plugins.get("exporters", format_, trust_code=True)
    with plugins.using(format_):
        path = out or Path("runs/export") / _name(model, format_) / f"model{target.suffix}"

    from ..export import base, verify
    from ..inference.load import ModelOptions, open_model
    from ..inference.sources import expand

    given = None if tolerance is None else verify.scaled_tolerance(precision, tolerance)
    options = base.ExportOptions(
        size=size,
        batch=batch_size,
        precision=precision,
        postprocess=postprocess,
        normalise=normalise,
        opset=opset,
        runner=with_runner,
        pictures=tuple(each.path for each in expand(pictures or ())),
        tolerance=given,
        measure=measure,
        measure_limit=limit,
        extra=extra,
    )
    with console.downloads() as fetched:
        loaded = open_model(
            ModelOptions(model, device="cpu", trust_code=trust_code, overrides=tuple(set_ or ())), progress=fetched
        )
    for remark in loaded.notes:
        console.note(remark)
    report = base.export(
        loaded,
        path,
        format_,
        options,
        overwrite=overwrite,
        on_step=lambda step: console.note(step.message),
        trust_code=True,
    )
    if as_json:
        console.emit_json({key: value for key, value in report.to_dict().items() if key != "schema_version"})
    else:
        _print(report, options)


def _one_of(kind: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise unknown_name(kind, value, known)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch is a number from 1 on, or dynamic, not {text!r}.")
    return int(text)


def _pair(text: str) -> tuple[str, Any]:
    from ..runtime.documents import parse_yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--option takes key=value, not {text!r}.")
    return key, parse_yaml(value, f"The value in --option {text!r}")


def _name(model: str, format_: str) -> str:
    """What the export is called, unless somebody says otherwise."""
    path = Path(model)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    stem = re.sub(r"\.(ya?ml|safetensors|pth|pkl|pt)$", "", path.name)
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{format_}")


def _print(report: ExportReport, options: ExportOptions) -> None:
    names = [*SHOWN, *(f"maps.{task}" for task in TASKS), *(f"inside.{task}" for task in TASKS)]
    rows = []
    for each in report.comparisons:
        figures = each.figures()
        shape = f"{each.batch} x {each.size[0]} x {each.size[1]}"
        rows.append([each.kind, shape, *(f"{figures[name]:.2g}" if name in figures else None for name in names)])
    used = [i for i in range(len(names)) if any(row[i + 2] is not None for row in rows)]
    columns = ["input", "batch x size", *(names[i].replace("largest_share", "largest/range") for i in used)]
    console.show_table(
        f"{report.model} and {report.path.name}: differences",
        columns,
        [[*row[:2], *(row[i + 2] for i in used)] for row in rows],
    )
    if report.quality is not None:
        _print_quality(report.quality)
    console.out(
        f"Wrote {report.path} ({report.bytes / 2**20:.1f} MiB; the weights are {report.weight_bytes / 2**20:.1f} MiB, "
        f"{options.precision}) in {report.seconds:.0f} s."
    )


def _print_quality(quality: dict[str, Any]) -> None:
    rows = [
        [
            name,
            *(
                f"{quality[kind][name]:.2f}" if quality[kind][name] is not None else None
                for kind in ("model", "exported")
            ),
            f"{difference:+.2f}",
        ]
        for name, difference in quality["difference"].items()
        if difference is not None
    ]
    title = f"Quality on {quality['pictures']} pictures of {quality['data']}"
    console.show_table(title, ["figure", "model", "file", "difference"], rows)

"""m2f export: write a model as a file for another runtime, after comparing the two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..config.run_folder import run_of
from ..errors import ConfigError
from ..runtime.text import is_whole_number
from . import completion
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..export.base import ExportOptions, ExportReport

FILE_PRECISIONS = ("fp32", "fp16", "int8")
SHOWN = ("class_logits.largest_share", "mask_logits.largest_share", "mask_logits.mean", "moved")


@help_page(
    "m2f export --model runs/train/small-panoptic",
    "m2f export --model coco-panoptic-swin-t --format openvino --size 640 640",
    most_used=("model", "format_", "out", "size", "precision"),
    panel="Train",
)
def export(
    model: Annotated[
        str,
        typer.Option(
            metavar="REF",
            help="Model: preset, run folder, checkpoint or Hugging Face repository.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.models,
        ),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Format, such as openvino, torch, huggingface or detectron2.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.parts("exporters"),
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="File or folder; by default runs/export/<name>/model.onnx.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    postprocess: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help=f"Task of final maps as further outputs: {', '.join(opt.TASKS)}.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.words(*opt.TASKS),
        ),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="H W",
            help="Fixed input size, in multiples of 32; by default any such size, or the one that the model needs.",
            rich_help_panel=opt.MODEL,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N", help="Images per run, or dynamic.", rich_help_panel=opt.MODEL)
    ] = "1",
    precision: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help=f"Number format of the file: {', '.join(FILE_PRECISIONS)}.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.words(*FILE_PRECISIONS),
        ),
    ] = "fp32",
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="ONNX: operator set; by default 18.", rich_help_panel=opt.ADVANCED)
    ] = None,
    normalise: Annotated[
        bool,
        typer.Option(
            "--normalise",
            help="Put normalisation into the file, which then takes RGB from 0 to 255.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    with_runner: Annotated[
        bool,
        typer.Option(
            "--with-runner",
            help="ONNX: write a small program that runs the file without PyTorch.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="SOURCE",
            help="Images to compare and calibrate with, by default generated ones; repeatable.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Annotated images on whose val the loss of quality is measured.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    limit: opt.Limit = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Largest difference of logits as a share of their range; 0.001 in fp32.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    set_: opt.SetOverrides = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of one format alone; repeatable.", rich_help_panel=opt.ADVANCED),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Format huggingface: repository of the hub to upload the checked folder to.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Make the repository of --push private. By default the hub decides, mostly public.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    overwrite: opt.Overwrite = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write a model for another runtime, and check the file.

    The file is run on several inputs and compared with the model. Exit code 5: out of tolerance; there is no file.
    """
    opt.one_of("task", postprocess, opt.TASKS)
    opt.one_of("precision", precision, FILE_PRECISIONS)
    if ":" not in format_:
        opt.one_of("format", format_, plugins.names("exporters"))
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
    from ..inference.sources import local_files

    given = None if tolerance is None else verify.scaled_tolerance(precision, tolerance)
    options = base.ExportOptions(
        size=size,
        batch=batch_size,
        precision=precision,
        postprocess=postprocess,
        normalise=normalise,
        opset=opset,
        runner=with_runner,
        images=tuple(local_files(images or (), "--images")),
        tolerance=given,
        measure=measure,
        measure_limit=limit,
        extra=extra,
        push=push,
        private=private,
    )
    base.check_push_options(target, format_, options)
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
        tree = {key: value for key, value in report.to_dict().items() if key != "schema_version"}
        console.emit_json({**tree, "pushed": report.pushed} if push else tree)
    else:
        _print(report, options)
        console.next_steps(["m2f", "predict", "IMAGES", "--model", report.path])


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not is_whole_number(text) or int(text) < 1:
        raise ConfigError(f"--batch is a number from 1 on, or dynamic, not {text[:80]!r}.")
    return int(text)


def _pair(text: str) -> tuple[str, Any]:
    from ..runtime.documents import parse_yaml

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--option takes key=value, not {text!r}.")
    return key, parse_yaml(value, f"The value in --option {text!r}")


def _name(model: str, format_: str) -> str:
    """Return the default name of an export."""
    path = run_of(Path(model))
    stem = re.sub(r"\.(ya?ml|safetensors|pth|pkl|pt)$", "", path.name)
    return re.sub(r"[^\w.-]+", "-", f"{stem}-{format_}")


def _print(report: ExportReport, options: ExportOptions) -> None:
    names = [*SHOWN, *(f"maps.{task}" for task in opt.TASKS), *(f"inside.{task}" for task in opt.TASKS)]
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
    if report.pushed is not None:
        console.out(f"Pushed to {report.pushed}. Use it: m2f predict images/ --model {options.push}")


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
    title = f"Quality on {quality['pictures']} images of {quality['data']}"
    console.show_table(title, ["figure", "model", "file", "difference"], rows)

"""m2f reproduce: measure released weights and compare with the published figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..config.published import decimals
from ..storage.uris import place_of
from . import completion
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalProgress
    from ..workflows.reproduce import Check, Reproduced, ReproduceOptions

ROW_FAILED = 1
COLUMNS = ["row", "figure", "published", "measured", "difference", "verdict"]


@help_page(
    "m2f reproduce coco-panoptic-swin-t --data coco",
    "m2f reproduce coco-panoptic-swin-t ade20k-swin-t-paper --limit 50",
    most_used=("data", "out", "limit", "device", "precision"),
)
def reproduce(
    rows: Annotated[
        list[str],
        typer.Argument(
            metavar="ROW",
            help="Presets with released weights; see m2f presets list.",
            autocompletion=completion.presets,
        ),
    ],
    data: opt.PublishedData = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the results. Stopped rows go on.", rich_help_panel=opt.OUTPUT),
    ] = Path("runs/reproduce"),
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta/--no-tta", help="Test-time augmentation; by default where published.", rich_help_panel=opt.SEGMENT
        ),
    ] = None,
    limit: opt.Limit = None,
    device: opt.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help=f"Number format: {', '.join(opt.PRECISIONS)}.",
            rich_help_panel=opt.SPEED,
            autocompletion=completion.words(*opt.PRECISIONS),
        ),
    ] = "fp32",
    workers: opt.ReaderThreads = 2,
    as_json: opt.AsJson = False,
) -> None:
    """Fetch the released weights of published rows, evaluate them on their data, and compare with the figures.

    A figure passes within 0.1 of the published one, both rounded to its digits. With --limit nothing is judged.
    Exit code 1: a row failed.
    """
    opt.one_of("precision", precision, opt.PRECISIONS)
    from ..workflows import reproduce as core

    options = core.ReproduceOptions(None if data is None else place_of(data), device, precision, limit, workers, tta)
    rows = list(dict.fromkeys(rows))
    with console.downloads() as fetched:
        core.make_ready(rows, options, fetched)
    found = [_one(name, options, out / name, as_json) for name in rows]
    if as_json:
        console.emit_json({"rule": core.RULE, "rows": [row.to_dict() for row in found]})
    else:
        _print(found, core.RULE)
    if any(row.verdict == core.FAIL for row in found):
        raise typer.Exit(ROW_FAILED)


def _one(name: str, options: ReproduceOptions, folder: Path, as_json: bool) -> Reproduced:
    from ..workflows import reproduce as core

    with console.StageList() as stages:

        def show(step: EvalProgress) -> None:
            stages.advance(step.message and f"{step.name}: {step.message}")

        try:
            command = ["m2f", *sys.argv[1:]]
            row = core.reproduce(name, options, folder, command=command, on_start=stages.start, on_progress=show)
        except KeyboardInterrupt:
            console.note(f"To go on: the same command. What is done is in {folder}.")
            raise
    for remark in row.notes:
        console.note(remark)
    return row


def _print(found: list[Reproduced], rule: str) -> None:
    table = [[row.preset, check.label, *_figures(check), check.verdict] for row in found for check in row.checks]
    console.show_table(f"Reproduced: {rule}", COLUMNS, table)
    for row in found:
        speed = f", {row.images_per_second:.2f} images/s on {row.device}" if row.images_per_second else ""
        failed = f", {row.failed} images failed" if row.failed else ""
        console.out(f"{row.preset}: {row.verdict}{failed}{speed}")


def _figures(check: Check) -> list[str]:
    published, measured = check.published, check.measured
    difference = "-" if published is None or measured is None else f"{measured - published:+.2f}"
    said = "-" if published is None else f"{published:.{decimals(published)}f}"
    return [said, "-" if measured is None else f"{measured:.2f}", difference]

"""m2f data prepare: turn a download into what training and evaluation read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ... import console, plugins
from .. import completion
from .. import options as opt
from ..help_page import help_page

if TYPE_CHECKING:
    from ...dataset_tools.prepare.run import PrepareProgress, PrepareReport


@help_page(
    "m2f data prepare ade20k",
    "m2f data prepare cityscapes --root downloads/ --out datasets/cityscapes",
    most_used=("root", "out", "workers", "verify"),
)
def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help=f"Data set to prepare: {', '.join(plugins.names('preparers'))}.",
            autocompletion=completion.parts("preparers"),
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder or archive (zip, tar) of the download, or a folder with its archives, which stay packed. By "
            "default its folder in $DETECTRON2_DATASETS.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write to, by default the same. In another one, the images are links.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    workers: opt.WorkerProcesses = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check the published hashes of archives, make everything again, compare, and replace what differs.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept a part of the published images.", rich_help_panel=opt.ADVANCED)
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Turn a downloaded data set into what training and evaluation read, as the published scripts do.

    Files that exist already are kept, and a run that was stopped continues where it was.
    """
    from ...dataset_tools.prepare import run

    stage = None
    with console.StageList() as stages:

        def show(progress: PrepareProgress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                stages.start(stage, progress.total - progress.done + 1)  # kept files are no work
            stages.advance()

        report = run.prepare(
            dataset, root, out, workers=workers, verify=verify, partial=partial, on_progress=show, trust_code=True
        )
    for remark in report.notes:
        console.warn(remark)
    if as_json:
        console.emit_json(report.to_dict())
    else:
        _show(report)


def _show(report: PrepareReport) -> None:
    counts = [[each.split, each.found, each.expected] for each in report.counts]
    console.show_table(report.dataset, ["split", "images", "published"], counts)
    rows = [[stage.title, stage.made, stage.kept, stage.replaced] for stage in report.stages]
    if rows:
        console.show_table("Files", ["what", "made", "kept", "replaced"], rows)
    console.out(f"Prepared: {report.folder}")

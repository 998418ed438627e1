"""m2f data prepare: from a download to what training and evaluation read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..dataset_tools.prepare.run import PrepareProgress, PrepareReport


def prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"{', '.join(plugins.names('preparers'))}.")],
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Its folder or archive (zip, tar), or a folder with its archives, which stay "
            "packed; default: its folder in $DETECTRON2_DATASETS.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to; default: the same folder. Elsewhere, pictures are linked."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check published hashes of archives, make everything again, compare, and replace what differs.",
        ),
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="A part of the published pictures is enough.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make of a downloaded data set what training and evaluation read, as the published scripts make it.

    What is there already is kept, and a run that was stopped goes on where it was.
    """
    from ..dataset_tools.prepare import run

    with ExitStack() as stack:
        report = run.prepare(
            dataset,
            root,
            out,
            workers=workers,
            verify=verify,
            partial=partial,
            on_progress=_bars(stack),
            trust_code=True,
        )
    for remark in report.notes:
        console.warn(remark)
    if as_json:
        console.emit_json(report.to_dict())
    else:
        _show(report)


def _bars(stack: ExitStack) -> Callable[[PrepareProgress], None]:
    """A progress bar for each stage, one after the other."""
    stages: dict[str, Any] = {}

    def show(progress: PrepareProgress) -> None:
        if progress.stage not in stages:
            stack.close()
            # What was kept is no work: the bar counts what is made.
            stages[progress.stage] = stack.enter_context(
                console.progress(progress.stage, progress.total - progress.done + 1)
            )
        stages[progress.stage](None)

    return show


def _show(report: PrepareReport) -> None:
    counts = [[each.split, each.found, each.expected] for each in report.counts]
    console.show_table(report.dataset, ["split", "pictures", "published"], counts)
    rows = [[stage.title, stage.made, stage.kept, stage.replaced] for stage in report.stages]
    if rows:
        console.show_table("Files", ["what", "made", "kept", "replaced"], rows)
    console.out(f"Prepared: {report.folder}")

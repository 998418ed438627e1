"""m2f report: write a page of an evaluation, a training, a prediction, or of two evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import ConfigError, M2FError
from . import options as opt
from .help_page import help_page

LEAST_SECONDS = 1


@help_page(
    "m2f report runs/eval/small-panoptic",
    "m2f report runs/eval/first runs/eval/second",
    most_used=("out", "watch"),
    panel="Train",
)
def report(
    refs: Annotated[
        list[Path], typer.Argument(metavar="REF…", help="Folder of m2f eval, train or predict, or two of m2f eval.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Page to write; by default report.html in the folder.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Write the page of a training again and again, until the training ends.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    every: Annotated[
        int,
        typer.Option(
            min=LEAST_SECONDS, metavar="SECONDS", help="Time between two pages of --watch.", rich_help_panel=opt.OUTPUT
        ),
    ] = 10,
    as_json: opt.AsJson = False,
) -> None:
    """Write one HTML page of an evaluation, a training or a prediction, or of what differs between two evaluations.

    The page needs no other file.
    """
    from ..report.write import write_report

    if len(refs) > 2:
        raise ConfigError(f"A page shows one folder or two, not {len(refs)}.", hint="Call m2f report for each.")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} is no page.", hint="Name it with .html at its end.")
    page = _watch(refs, out, every) if watch else write_report(refs, out)
    if as_json:
        return console.emit_json({"page": str(page)})
    console.out(f"Report: {page}")


def written(write: Callable[[], Path]) -> Path | None:
    """Write the page of work that has just ended. An error of the page is only shown: what was computed is there."""
    try:
        return write()
    except M2FError as error:
        console.warn(f"The report was not written: {error}")
        return None


def written_of(folder: Path) -> Path | None:
    """Write the page of a folder as `written` does."""
    from ..report.write import write_report

    return written(lambda: write_report([folder]))


def _watch(refs: list[Path], out: Path | None, seconds: int) -> Path:
    """Write the page of a training until it ends, or until Ctrl-C, and return the page."""
    from ..report.run import is_going_on, is_run, write_run_page

    folder = refs[0]
    if len(refs) == 1 and not is_run(folder) and is_going_on(folder):
        console.note(f"Nothing is logged in {folder} yet. Waiting.")
        while not is_run(folder) and is_going_on(folder):
            time.sleep(LEAST_SECONDS)
    if len(refs) > 1 or not is_run(folder):
        raise ConfigError("--watch takes one folder of m2f train.", hint="An evaluation writes its page at its end.")
    if is_going_on(folder):
        page = write_run_page(folder, out, refresh=seconds)
        console.note(f"Open {page}: it shows the training as it goes on. Ctrl-C ends this, not the training.")
        try:
            while is_going_on(folder):
                time.sleep(seconds)
                write_run_page(folder, out, refresh=seconds)
        except KeyboardInterrupt:
            console.note("No longer watched.")
    return write_run_page(folder, out)

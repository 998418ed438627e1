"""m2f report: write a page of an evaluation or a training."""

from __future__ import annotations

import time
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
    "m2f report runs/train/small-panoptic --watch 30",
    most_used=("out", "watch"),
    panel="Train",
)
def report(
    refs: Annotated[list[Path], typer.Argument(metavar="REF…", help="Folders of m2f eval or m2f train.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Page to write; by default report.html in the folder.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    watch: Annotated[
        int | None,
        typer.Option(
            min=LEAST_SECONDS,
            metavar="SECONDS",
            help="Write the page of a training again every so often, until the training ends.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write one HTML page of an evaluation or a training. It needs no other file."""
    from ..report.write import write_report

    if out is not None and len(refs) > 1:
        raise ConfigError("--out takes the page of one folder.", hint="Leave it out: each page goes into its folder.")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} is no page.", hint="Name it with .html at its end.")
    pages = [_watch(refs, out, watch)] if watch else [write_report(ref, out) for ref in refs]
    if as_json:
        return console.emit_json({"pages": [str(page) for page in pages]})
    for page in pages:
        console.out(f"Report: {page}")


def written(folder: Path) -> Path | None:
    """Write the page of work that has just ended. An error of the page is only shown: what was computed is there."""
    from ..report.write import write_report

    try:
        return write_report(folder)
    except M2FError as error:
        console.warn(f"The report was not written: {error}")
        return None


def _watch(refs: list[Path], out: Path | None, seconds: int) -> Path:
    """Write the page of a training until it ends, or until Ctrl-C, and return the page."""
    from ..report.run import is_going_on, is_run, write_run_page

    if len(refs) > 1 or not is_run(refs[0]):
        raise ConfigError("--watch takes one folder of m2f train.", hint="An evaluation writes its page at its end.")
    [folder] = refs
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

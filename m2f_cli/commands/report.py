"""m2f report: write a page of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import ConfigError
from . import options as opt
from .help_page import help_page


@help_page(
    "m2f report runs/eval/small-panoptic",
    "m2f report runs/eval/small-panoptic --out report.html",
    most_used=("out",),
    panel="Train",
)
def report(
    refs: Annotated[list[Path], typer.Argument(metavar="REF…", help="Folders of m2f eval.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Page to write; by default report.html in the folder.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write one HTML page of an evaluation: figures, classes, errors and images. It needs no other file."""
    from ..report.evaluation import write_evaluation_page

    if out is not None and len(refs) > 1:
        raise ConfigError("--out takes the page of one folder.", hint="Leave it out: each page goes into its folder.")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} is no page.", hint="Name it with .html at its end.")
    pages = [write_evaluation_page(ref, out) for ref in refs]
    if as_json:
        return console.emit_json({"pages": [str(page) for page in pages]})
    for page in pages:
        console.out(f"Report: {page}")

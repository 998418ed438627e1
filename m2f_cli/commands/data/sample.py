"""m2f data sample: copy a small annotated data set, which is shipped with m2f, to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ... import console
from .. import options as opt
from ..help_page import help_page


@help_page(
    "m2f data sample nuclei",
    "m2f data sample nuclei --out out/nuclei",
    most_used=("out",),
)
def sample(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set, such as nuclei: real images, public domain.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="New folder for the copy; by default its name.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
) -> None:
    """Copy a small set of real annotated images, which is shipped with m2f, to a folder of yours."""
    from ...dataset_tools.sample import copy_sample

    folder = out or Path(name)
    files = copy_sample(name, folder)
    console.out(f"Copied {files} files to {folder}. Licence and source: {folder / 'README.md'}")
    console.next_steps(["m2f", "data", "check", folder])

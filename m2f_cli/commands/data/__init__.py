"""m2f data: prepare, check, view, convert and split folders of annotated images."""

from __future__ import annotations

import typer

from . import check, convert, prepare, sample, split, view

app = typer.Typer(
    no_args_is_help=True,
    help="Prepare, check, view, convert and split annotated images.",
    rich_help_panel="Data",
)
for command in (prepare.prepare, check.check, view.view, convert.convert, split.split, sample.sample):
    app.command()(command)

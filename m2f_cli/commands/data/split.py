"""m2f data split: divide the images of a data set into splits."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from ... import console
from ...errors import DataError
from .. import options as opt
from ..help_page import help_page
from .convert import show


@help_page(
    "m2f data split my-images out/divided --val 0.2",
    "m2f data split my-images out/divided --val 0.2 --group-by folder --stratify",
    most_used=("val", "test", "seed", "group_by", "stratify"),
)
def split(
    source: opt.SourceFolder,
    destination: opt.NewFolder,
    val: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the images for val, 0 to 1.", rich_help_panel=opt.DATA),
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the images for test, 0 to 1.", rich_help_panel=opt.DATA),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the division into splits.", rich_help_panel=opt.ADVANCED)] = 0,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Divide the images of each class alike.", rich_help_panel=opt.DATA)
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX|folder",
            help="Group of an image, which is never divided: the first ( ) of a regular expression for its name, or "
            "its folder.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    val_groups: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,…", help="Groups that make up val; repeatable.", rich_help_panel=opt.DATA),
    ] = None,
    test_groups: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,…", help="Groups that make up test; repeatable.", rich_help_panel=opt.DATA),
    ] = None,
    from_: opt.SplitNames = None,
    link: opt.Link = False,
    format_: opt.FormatName = None,
    workers: opt.WorkerProcesses = None,
    as_json: opt.AsJson = False,
) -> None:
    """Divide the images of a data set into train, val and test; the format stays the same.

    The same seed gives the same splits, whatever the order of the files. Exit code 3: some images could not be used.
    """
    from ...dataset_tools.split import TEST, VAL
    from ...dataset_tools.split import split as run

    shares = {name: share for name, share in ((VAL, val), (TEST, test)) if share is not None}
    pinned = {name: opt.listed(groups) for name, groups in ((VAL, val_groups), (TEST, test_groups)) if groups}
    with console.StageList() as stages:
        division, written = run(
            source,
            destination,
            shares,
            seed=seed,
            stratify=stratify,
            group_by=group_by,
            pinned=pinned,
            splits=tuple(from_ or ()),
            link=link,
            workers=workers,
            format=format_,
            on_start=functools.partial(stages.start, "Splitting"),
            on_image=lambda _: stages.advance(),
            trust_code=True,
        )
    if as_json:
        console.emit_json({"division": division.to_dict(), **written.to_dict()})
    else:
        rows = [
            (name, row["pictures"], row["groups"], f"{row['share']:.1%}") for name, row in division.to_dict().items()
        ]
        console.show_table("Splits", ["split", "images", "groups", "share"], rows)
        show(written)
    if written.failures:
        raise typer.Exit(DataError.exit_code)

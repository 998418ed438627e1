"""m2f data split: pictures shared out to splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .data_convert import SOME_FAILED, ConvertProgress, show


def split(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of annotated pictures, of any known format.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder; nothing is overwritten.")],
    val: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the pictures, 0 to 1.")] = None,
    test: Annotated[float | None, typer.Option(metavar="SHARE", help="Of the pictures, 0 to 1.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another division.")] = 0,
    stratify: Annotated[bool, typer.Option("--stratify", help="Share out each class alike.")] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX|folder",
            help="What pictures of one group have in common in their names: the first "
            "( ) of a regular expression, or the folder. Groups stay whole.",
        ),
    ] = None,
    val_groups: Annotated[
        list[str] | None, typer.Option(metavar="NAME,…", help="Val is these groups, whole; repeatable.")
    ] = None,
    test_groups: Annotated[
        list[str] | None, typer.Option(metavar="NAME,…", help="Test is these groups, whole; repeatable.")
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="NAME", help="Which splits of SRC are shared out, together; repeatable."),
    ] = None,
    link: Annotated[bool, typer.Option("--link/--copy", help="Symbolic links to the pictures, or copies.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Of SRC, where it cannot be recognised.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core for many pictures.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What went where, as json.")] = False,
) -> None:
    """Share the pictures of a data set out to train, val and test; the format stays the same.

    The same seed gives the same splits, whatever the order of the files. Exit code 3: some pictures could not be used.
    """
    from ..dataset_tools.split import TEST, VAL
    from ..dataset_tools.split import split as run

    shares = {name: share for name, share in ((VAL, val), (TEST, test)) if share is not None}
    pinned = {name: _listed(groups) for name, groups in ((VAL, val_groups), (TEST, test_groups)) if groups}
    with ConvertProgress("Splitting") as progress:
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
            on_start=progress.start,
            on_picture=progress.show,
            trust_code=True,
        )
    if as_json:
        console.emit_json({"division": division.to_dict(), **written.to_dict()})
    else:
        rows = [
            (name, row["pictures"], row["groups"], f"{row['share']:.1%}") for name, row in division.to_dict().items()
        ]
        console.show_table("Shared out", ["split", "pictures", "groups", "share"], rows)
        show(written)
    if written.failures:
        raise typer.Exit(SOME_FAILED)


def _listed(given: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))

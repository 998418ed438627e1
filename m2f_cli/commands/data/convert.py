"""m2f data convert: write annotated images in another format."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated

import typer

from ... import console
from ...errors import DataError
from .. import completion
from .. import options as opt
from ..help_page import help_page
from .reading import parse_label_map

if TYPE_CHECKING:
    from ...dataset_tools.convert.run import Conversion


@help_page(
    "m2f data convert my-images out/coco --to coco-instance",
    "m2f data convert masks out/coco --to coco-instance --label-map 0=,255=cell",
    most_used=("to", "split", "classes", "link", "workers"),
)
def convert(
    source: opt.SourceFolder,
    destination: opt.NewFolder,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Format: coco-instance, coco-panoptic, label-maps, yolo-seg, cityscapes, labelme or webdataset.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.parts("converters"),
        ),
    ],
    split: opt.SplitNames = None,
    link: opt.Link = False,
    format_: opt.FormatName = None,
    classes: opt.Classes = None,
    ignore_index: opt.IgnoreIndex = None,
    label_map: opt.LabelMap = None,
    separate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Label maps: connected regions of this class become objects; repeatable.",
            rich_help_panel=opt.DATA,
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Shards: images of each, by default 1000.", rich_help_panel=opt.OUTPUT),
    ] = None,
    workers: opt.WorkerProcesses = None,
    as_json: opt.AsJson = False,
) -> None:
    """Write annotated images in another format, and report what that format cannot hold.

    Exit code 3: some images could not be used; the others are written.
    """
    from ...dataset_tools.convert.run import convert as run

    with console.StageList() as stages:
        done = run(
            source,
            destination,
            to,
            splits=tuple(split or ()),
            format=format_,
            classes=classes,
            ignore_index=ignore_index,
            label_map=parse_label_map(label_map),
            separate=tuple(separate or ()),
            shard_size=shard_size,
            link=link,
            workers=workers,
            on_start=functools.partial(stages.start, "Converting"),
            on_image=lambda _: stages.advance(),
            trust_code=True,
        )
    if as_json:
        console.emit_json(done.to_dict())
    else:
        show(done)
    if done.failures:
        raise typer.Exit(DataError.exit_code)


def show(done: Conversion) -> None:
    """Show splits, losses and failures."""
    rows = [(each.split, each.images, len(each.failures) or "") for each in done.splits]
    console.show_table(f"{done.format} → {done.to}, {done.classes} classes", ["split", "images", "failed"], rows)
    if done.losses:
        lost = [(loss.kind, loss.count, loss.text) for loss in done.losses]
        console.show_table("What the new format does not hold", ["what", "number", "meaning"], lost)
    for note in done.notes:
        console.note(note)
    for split, name, reason in done.failures[: console.SHOWN_FAILURES]:
        console.warn(f"{split}: {name}: {reason}")
    if len(done.failures) > console.SHOWN_FAILURES:
        console.warn(f"… and {len(done.failures) - console.SHOWN_FAILURES} more; --json lists all.")
    console.out(f"Written: {done.destination}")

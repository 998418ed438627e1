"""m2f data convert: annotated pictures in another format."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..dataset_tools.convert.run import Conversion
    from ..dataset_tools.convert.write import ConvertOutcome

SOME_FAILED = 3
SHOWN_FAILURES = 5


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of annotated pictures, of any known format.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder; nothing is overwritten.")],
    to: Annotated[
        str,
        typer.Option(metavar="FORMAT", help="coco-instance, coco-panoptic, label-maps, yolo-seg, cityscapes, labelme."),
    ],
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this split; repeatable. Default: all.")
    ] = None,
    link: Annotated[bool, typer.Option("--link/--copy", help="Symbolic links to the pictures, or copies.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Of SRC, where it cannot be recognised.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A class table instead of the classes of SRC.")
    ] = None,
    ignore_index: Annotated[
        int | None, typer.Option(metavar="VALUE", help="Label maps: the pixel value that counts nowhere.")
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE=CLASS,…", help="Label maps: what pixel values mean; VALUE= counts nowhere."),
    ] = None,
    separate: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Label maps: connected regions of this class become objects; repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core for many pictures.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, lost and left out, as json.")] = False,
) -> None:
    """Write annotated pictures in another format, and say what it cannot hold.

    Exit code 3: some pictures could not be used; the others are written.
    """
    from ..dataset_tools.convert.run import convert as run

    with ConvertProgress("Converting") as progress:
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
            link=link,
            workers=workers,
            on_start=progress.start,
            on_picture=progress.show,
            trust_code=True,
        )
    if as_json:
        console.emit_json(done.to_dict())
    else:
        show(done)
    if done.failures:
        raise typer.Exit(SOME_FAILED)


def parse_label_map(given: list[str] | None) -> dict[int, str | int | None] | None:
    """VALUE=CLASS, where CLASS is a name, a number, or nothing for what counts nowhere.

    Raises:
        ConfigError: a part of another form.
    """
    if not given:
        return None
    found: dict[int, str | int | None] = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        value, is_there, meaning = part.partition("=")
        if not is_there or not value.strip().isdecimal():
            raise ConfigError(f"--label-map {part!r} should be VALUE=CLASS, such as 255=cell.")
        meaning = meaning.strip()
        found[int(value)] = int(meaning) if meaning.isdecimal() else meaning or None
    return found


def show(done: Conversion) -> None:
    """Splits, losses and failures, for people."""
    rows = [(each.split, each.pictures, len(each.failures) or "") for each in done.splits]
    console.show_table(f"{done.format} → {done.to}, {done.classes} classes", ["split", "pictures", "failed"], rows)
    if done.losses:
        lost = [(loss.kind, loss.count, loss.text) for loss in done.losses]
        console.show_table("What the new format does not hold", ["what", "number", "meaning"], lost)
    for note in done.notes:
        console.note(note)
    for split, name, reason in done.failures[:SHOWN_FAILURES]:
        console.warn(f"{split}: {name}: {reason}")
    if len(done.failures) > SHOWN_FAILURES:
        console.warn(f"… and {len(done.failures) - SHOWN_FAILURES} more; --json lists all.")
    console.out(f"Written: {done.destination}")


class ConvertProgress:
    """A bar that begins when the number of pictures is known."""

    def __init__(self, description: str):
        self.description = description
        self.stack = ExitStack()
        self.advance: Any = None

    def __enter__(self) -> ConvertProgress:
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    def start(self, pictures: int) -> None:
        self.advance = self.stack.enter_context(console.progress(self.description, pictures))

    def show(self, outcome: ConvertOutcome) -> None:
        self.advance(None)

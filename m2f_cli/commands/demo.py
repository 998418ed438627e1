"""m2f demo: the whole of prediction, offline, on generated pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console

if TYPE_CHECKING:
    from ..inference.demo import Step

RANDOM = (
    "The weights of this network are random, so the masks that it predicts mean nothing yet. For real ones run: "
    "m2f predict photo.jpg --task panoptic (the first time it downloads released weights)."
)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("runs/demo"),
    pictures: Annotated[int, typer.Option(min=1, max=100, help="How many scenes to generate.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="The steps as json on stdout.")] = False,
) -> None:
    """Show everything at once, offline: scenes are generated, drawn, and segmented by a small network.

    Run again, it replaces its own files in the folder, and no others.
    """
    from ..inference import demo as core

    with console.progress("Running the demo", core.STEPS, unit="steps") as advance:
        steps = core.run(out, pictures, on_step=lambda step: advance(None))
    if as_json:
        _emit(steps, out)
        return
    rows = [[step.name, step.what, f"{step.seconds:.1f}", str(step.where)] for step in steps]
    console.show_table("m2f demo", ["step", "what", "seconds", "where"], rows)
    console.out(RANDOM)


def _emit(steps: list[Step], out: Path) -> None:
    console.emit_json({
        "out": str(out),
        "seconds": round(sum(step.seconds for step in steps), 3),
        "steps": [
            {**dataclasses.asdict(step), "seconds": round(step.seconds, 3), "where": str(step.where)} for step in steps
        ],
        "note": RANDOM,
    })  # fmt: skip

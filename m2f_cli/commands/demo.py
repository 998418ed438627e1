"""m2f demo: train, evaluate and predict on generated images, offline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..workflows.demo import DemoStep

STORY = {
    "pictures": "Scenes to look at were generated; training never sees them.",
    "truth": "Their annotations were drawn.",
    "train": "A small Mask2Former was trained on other scenes, from random weights.",
    "evaluate": "It was evaluated on scenes that it was not trained on.",
    "panoptic": "Every pixel: one segment.",
    "semantic": "Every pixel: one class.",
    "instance": "Every object: a mask and a score.",
    "page": "All of it is on one page.",
}
SHOWN = {"pictures": "images", "truth": "annotations"}  # JSON keeps the former names of these steps


@help_page(
    "m2f demo",
    "m2f demo --out runs/short-demo --iterations 100",
    most_used=("out", "images", "iterations"),
    panel="Segment",
)
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for all results.", rich_help_panel=opt.OUTPUT)
    ] = Path("runs/demo"),
    images: Annotated[
        int, typer.Option("--images", min=1, max=100, help="Number of scenes to segment.", rich_help_panel=opt.DATA)
    ] = 4,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Training steps; fewer are quicker and worse.", rich_help_panel=opt.SPEED)
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Generate images, train on them, evaluate and predict, offline. It takes about three minutes.

    A second run replaces its own files in the folder, and no others.
    """
    from ..training.prepare import Listener
    from ..workflows import demo as core
    from .train_display import Display

    total = core.demo_config(iterations).train.iterations
    console.note(f"A small Mask2Former is trained on generated scenes on this machine, in {total} steps.")
    with Display(total) as display:
        listener = Listener(on_start=display.start, on_step=display.step, on_evaluated=display.evaluated)
        steps = core.run(out, images, iterations=iterations, on_step=_tell, listener=listener)
    if as_json:
        return _emit(steps, out)
    rows = [[SHOWN.get(step.name, step.name), step.what, f"{step.seconds:.1f}", str(step.where)] for step in steps]
    console.show_table("m2f demo", ["step", "what", "seconds", "where"], rows)
    console.out(f"Look at {out / 'index.html'}. Then your own images: m2f predict photo.jpg --task panoptic")


def _tell(step: DemoStep) -> None:
    console.note(f"{STORY[step.name]} {step.what[0].upper()}{step.what[1:]} ({step.seconds:.0f} s).")


def _emit(steps: list[DemoStep], out: Path) -> None:
    console.emit_json(
        {
            "out": str(out),
            "seconds": round(sum(step.seconds for step in steps), 3),
            "steps": [
                {**dataclasses.asdict(step), "seconds": round(step.seconds, 3), "where": str(step.where)}
                for step in steps
            ],
        }
    )

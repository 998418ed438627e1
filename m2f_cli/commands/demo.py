"""m2f demo: train, evaluate and predict on generated images, offline."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalResult
    from ..training.loop import StepRecord
    from ..training.prepare import Run
    from ..workflows.demo import DemoStep

STORY = {
    "pictures": "Scenes to look at were generated; training never sees them.",
    "truth": "Their annotations were drawn.",
    "train": "A small MP-Former was trained on other scenes, from random weights.",
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
        int | None,
        typer.Option(
            min=1,
            help="Training steps; fewer are quicker and worse.",
            show_default="as many as fit into three minutes",
            rich_help_panel=opt.SPEED,
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Generate images, train on them, evaluate and predict, offline. It takes about three minutes.

    A second run replaces its own files in the folder, and no others.
    """
    from ..training.prepare import Listener
    from ..workflows import demo as core

    with DemoDisplay(core.TITLES) as display:
        listener = Listener(
            on_start=display.started, on_step=display.trained, on_evaluated=display.evaluated, on_note=console.warn
        )
        steps = core.run(
            out, images, iterations=iterations, on_begin=display.begin, on_step=display.finished, listener=listener
        )
    if as_json:
        return _emit(steps, out)
    rows = [[SHOWN.get(step.name, step.name), step.what, f"{step.seconds:.1f}", str(step.where)] for step in steps]
    console.show_table("m2f demo", ["step", "what", "seconds", "where"], rows)
    console.out(f"Look at {out / 'index.html'}. Then your own images: m2f predict photo.jpg --task panoptic")


class DemoDisplay:
    """Progress of the demo on stderr: a bar over all of it in a terminal, else lines.

    Args:
        titles: what runs in each step, by the names of the steps.
    """

    every_seconds = 15.0  # between two lines of the training, without a terminal

    def __init__(self, titles: Mapping[str, str]):
        self.titles, self.iterations = titles, 0
        self.began = self.told = 0.0

    def __enter__(self) -> DemoDisplay:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        stderr = console.stderr()
        self.is_terminal = stderr.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self.bar = Progress(*columns, console=stderr, disable=not self.is_terminal)
        # A step of the training is the unit. The evaluation is part of it; the other steps are short.
        self.task = self.bar.add_task("", total=None, numbers="")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, name: str) -> None:
        self.bar.update(self.task, description=self.titles[name], numbers="")

    def finished(self, step: DemoStep) -> None:
        self.bar.advance(self.task)
        console.note(f"{STORY[step.name]} {step.what[0].upper()}{step.what[1:]} ({step.seconds:.0f} s).")

    def started(self, run: Run) -> None:
        self.iterations = run.settings.train.iterations
        self.bar.update(self.task, total=self.iterations + len(self.titles))
        console.note(f"A small MP-Former is trained on generated scenes on this machine, in {self.iterations} steps.")

    def trained(self, step: StepRecord) -> None:
        now, done = time.monotonic(), step.iteration + 1
        self.began = self.began or now - step.seconds
        numbers = f"step {done}/{self.iterations}, loss {step.total:.2f}"
        self.bar.update(self.task, advance=1, numbers=numbers if done < self.iterations else "evaluating")
        if not self.is_terminal and now - max(self.told, self.began) > self.every_seconds:
            self.told = now
            left = (now - self.began) / done * (self.iterations - done)
            console.note(f"Train: step {done} of {self.iterations}, loss {step.total:.2f}, about {left:.0f} s left.")

    def evaluated(self, iteration: int, result: EvalResult) -> None:
        quality = result.figures["pq"]
        console.note(f"PQ {quality:.1f} after {iteration} steps, on {result.images} scenes ({result.seconds:.0f} s).")


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

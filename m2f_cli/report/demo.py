"""The page of `m2f demo`: figures, scenes, learning curves, classes, steps and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..structures.categories import Categories
from .charts import training_charts
from .page import image_uri, write_page
from .tables import quality_rows


@dataclass(frozen=True)
class SceneImage:
    """Image file of a scene, such as its annotation, with its caption."""

    caption: str
    path: Path

    @property
    def uri(self) -> str:
        return image_uri(self.path)


@dataclass(frozen=True)
class SceneView:
    """Images of one scene, all of the same view."""

    name: str
    images: Sequence[SceneImage]


@dataclass(frozen=True)
class ReportedStep:
    """A step that was done.

    Attributes:
        title: the step.
        what: its result in words.
        seconds: its duration.
        command: the command line that repeats it; empty if no command does it alone.
    """

    title: str
    what: str
    seconds: float
    command: str


@dataclass(frozen=True)
class DemoReport:
    """Content of the page.

    Attributes:
        summary: what was done, in a sentence or two.
        results: document results.json of the evaluation; empty without one.
        metrics: metrics.jsonl of the run.
        categories: the classes.
        scenes: scenes that the model segmented.
        enlarged: factor between the edges of these scenes and those of the training.
        steps: steps of the demo.
        next_commands: what to do next, as (words, command line).
    """

    summary: str
    results: Mapping[str, Any]
    metrics: Path
    categories: Categories
    scenes: Sequence[SceneView]
    enlarged: int
    steps: Sequence[ReportedStep]
    next_commands: Sequence[tuple[str, str]]


def write_demo_page(report: DemoReport, path: Path) -> Path:
    """Write the page as one file that needs no other.

    Raises:
        M2FError: a file cannot be read or written.
    """
    figures = report.results.get("figures", {})
    return write_page(
        "demo.html",
        path,
        title="m2f demo",
        summary=report.summary,
        figures={name: figures.get(name) for name in ("pq", "pq_things", "pq_stuff")},
        unseen=report.results.get("scored", 0),
        seconds=sum(step.seconds for step in report.steps),
        charts=training_charts(report.metrics),
        rows=quality_rows(report.results, report.categories),
        scenes=report.scenes,
        enlarged=report.enlarged,
        steps=report.steps,
        next_commands=report.next_commands,
    )

"""The page of a training: curves, the last evaluation, samples, settings and environment.

It is made of the files of the run's folder alone, so that it can be written while the run goes on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.run_folder import CONFIG, ENVIRONMENT, METRICS, RESULTS
from ..errors import DataError
from ..runtime import documents
from ..runtime.locks import is_held
from ..runtime.metrics_log import names_of, points_of, read_entries
from .charts import LOSSES, LineChart, line_chart
from .evaluation import PAGE, HeadFigure
from .page import image_uri, write_page
from .records import flat, listed, mapping
from .tables import WORDS, class_table, finite

SAMPLES = "samples"
MOST_SAMPLES = 12
LARGE = 4  # figures in large letters
FIGURES = (("pq", "pq_things", "pq_stuff"), ("ap", "ap50", "ap75"), ("miou", "macc", "fwiou"))
ENDS = {
    "finished": "finished",
    "early": "stopped early, since it no longer got better",
    "time": "stopped, since its time was used up",
    "signal": "stopped by a signal",
}


@dataclass(frozen=True)
class SampleImage:
    """Image that the run drew of its training data."""

    name: str
    uri: str


def is_run(folder: Path) -> bool:
    """Return True for the folder of a training."""
    return (folder / METRICS).is_file()


def is_going_on(folder: Path) -> bool:
    """Return True while a process writes to the folder."""
    return is_held(folder)


def write_run_page(folder: Path, out: Path | None = None, *, refresh: int = 0) -> Path:
    """Write the page of a folder of `m2f train`, and return it.

    Args:
        folder: the folder of the run.
        out: the page; by default report.html in the folder.
        refresh: seconds after which a browser reads the page again; 0 for never.

    Raises:
        DataError: the folder holds no run, or a damaged file.
        M2FError: the page cannot be written.
    """
    path = folder / METRICS
    if not path.is_file():
        raise DataError(f"{folder} holds no training: there is no {METRICS}.", hint="Pass a folder of `m2f train`.")
    entries = read_entries(path)
    environment = {key: value for key, value in _read(folder / ENVIRONMENT).items() if key != "crc32"}
    settings = documents.read_yaml(folder / CONFIG, error=DataError) if (folder / CONFIG).is_file() else {}
    results = _read(folder / RESULTS)
    best = mapping(results.get("best"))
    figures = last_figures(entries)
    return write_page(
        "run.html",
        out or folder / PAGE,
        title=f"Training {folder.resolve().name}",
        refresh=refresh,
        state=_state(folder, results),
        done=_steps(entries),
        planned=mapping(mapping(settings).get("train")).get("iterations"),
        best=best,
        classes=class_table(best, ()),
        seconds=finite(results.get("seconds")),
        figures=figures[:LARGE],
        more_figures=figures[LARGE:],
        evaluated=_last(entries).get("iteration"),
        charts=[chart for chart in run_charts(entries) if chart.lines],
        samples=_samples(folder / SAMPLES),
        command=shlex.join(map(str, listed(environment.pop("command", None)))),
        notes=[str(each) for each in listed(environment.pop("notes", None))],
        settings=list(flat(mapping(settings))),
        environment=list(flat(environment)),
    )


def run_charts(entries: Sequence[dict[str, Any]]) -> list[LineChart]:
    """Return the curves of a run over its iterations; a chart has no lines where nothing was logged."""

    def chart(title: str, kind: str, names: Mapping[str, str], highest: float | None = None) -> LineChart:
        lines = {shown: points_of(entries, kind, name) for name, shown in names.items()}
        return line_chart(title, lines, x_label="iteration", highest=highest)

    measured = set(names_of(entries, "val"))
    charts = [chart("Loss", "train", LOSSES)]
    for group in FIGURES:
        shown = {name: WORDS.get(name, name) for name in group if name in measured}
        charts.append(chart("Figures on the validation images", "val", shown, 100.0))
    charts.append(chart("Learning rate", "train", {"lr": "learning rate"}))
    charts.append(chart("Length of the gradient", "train", {"gradient_norm": "before clipping"}))
    charts.append(chart("Speed", "train", {"images_per_second": "images per second"}))
    return charts


def last_figures(entries: Sequence[dict[str, Any]]) -> list[HeadFigure]:
    """Return the figures of the last evaluation; none without one."""
    return [
        HeadFigure(WORDS.get(name, name.replace("_", " ")), finite(value))
        for name, value in _last(entries).items()
        if name not in ("kind", "iteration") and not name.startswith("pq_lost_")
    ]


def _last(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next((entry for entry in reversed(entries) if entry.get("kind") == "val"), {})


def _steps(entries: Sequence[dict[str, Any]]) -> int:
    """Return the number of steps that were done."""
    numbers = [entry.get("iteration") for entry in entries if entry.get("kind") == "train"]
    return max((number + 1 for number in numbers if isinstance(number, int)), default=0)


def _state(folder: Path, results: Mapping[str, Any]) -> str:
    if is_going_on(folder):
        return "going on"
    return ENDS.get(str(results.get("ended")), "ended without a result")


def _samples(folder: Path) -> list[SampleImage]:
    paths = sorted(path for path in folder.glob("*.jpg") if path.is_file())[:MOST_SAMPLES] if folder.is_dir() else []
    return [SampleImage(path.stem, image_uri(path)) for path in paths]


def _read(path: Path) -> Mapping[str, Any]:
    return mapping(documents.read_json(path)) if path.is_file() else {}

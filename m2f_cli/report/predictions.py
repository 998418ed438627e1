"""The page of a prediction: classes, scores, and its images with their segments. There is no annotation to compare.

It is made of predictions.json and views.jsonl of a folder of `m2f predict --report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.stored_views import ImageView, open_views
from ..inference.journal import PAGE, PREDICTIONS
from ..runtime.documents import read_json
from ..structures.categories import Categories
from .bars import ColumnChart, column_chart
from .gallery import INDEX, MOST, gallery_of, parts_of, write_parts
from .page import write_page
from .records import flat, listed, mapping
from .tables import ClassColumn, ClassRow, FigureTable, finite

SCORE_STEPS = 20
PREDICTED = "predicted"
SEGMENTS = ("segments", "instances", "classes")  # keys of an image, by the task


@dataclass
class PredictedCounts:
    """Counts over the images of predictions.json.

    Attributes:
        images: number of images with a result.
        segments, images_of, scores: of each class by its name: segments, images that show it, sum of the scores.
        steps: segments by score, in steps of 0.05.
        failures: name and error of the images without a result.
    """

    images: int = 0
    segments: Counter[str] = field(default_factory=Counter)
    images_of: Counter[str] = field(default_factory=Counter)
    scores: dict[str, float] = field(default_factory=dict)
    steps: list[int] = field(default_factory=lambda: [0] * SCORE_STEPS)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, image: Mapping[str, Any]) -> None:
        """Add one image of predictions.json, as far as it has the expected form."""
        if "error" in image:
            self.failures.append((str(image.get("name", "")), str(image["error"])))
            return
        self.images += 1
        found = [mapping(each) for key in SEGMENTS for each in listed(image.get(key))]
        names = [str(each.get("label", "")) for each in found]
        self.segments.update(names)
        self.images_of.update(set(names))
        for name, each in zip(names, found, strict=True):
            score = finite(each.get("score"))
            if score is not None:
                self.scores[name] = self.scores.get(name, 0.0) + score
                self.steps[min(SCORE_STEPS - 1, max(0, int(score * SCORE_STEPS)))] += 1


def is_prediction(folder: Path) -> bool:
    """Return True for a folder of `m2f predict`."""
    return (folder / PREDICTIONS).is_file()


def write_predictions_page(folder: Path, out: Path | None = None, *, most: int = MOST) -> Path:
    """Write the page of a folder of `m2f predict`, and return it.

    Args:
        folder: the folder, with predictions.json.
        out: the page; by default report.html in the folder. With more than `most` images it is the page index.html in
            a folder of that name without suffix.
        most: number of images on one page.

    Raises:
        DataError: the folder holds no prediction, or a damaged file.
        M2FError: the page cannot be written.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise DataError(f"{folder} holds no prediction: there is no {PREDICTIONS}.")
    document = mapping(read_json(path))
    counts = PredictedCounts()
    for each in listed(document.get("predictions")):
        counts.add(mapping(each))
    views = open_views(folder)
    values = _values(document, counts, views.categories if views else ())
    out = out or folder / PAGE
    if views is None:
        return write_page("predictions.html", out, gallery=None, pages=[], images=0, **values)
    newest = {view.name: place for place, view in enumerate(views)}

    def shown() -> Iterator[ImageView]:
        return (view for place, view in enumerate(views) if newest[view.name] == place)

    def gallery(images: list[ImageView]) -> dict[str, Any] | None:
        return gallery_of(views.tasks, views.categories, images, alone="prediction")

    first, pages = gallery(list(islice(shown(), most))), []
    if len(newest) > most:
        room = out.with_suffix("")
        galleries = map(gallery, parts_of(shown(), most))
        pages = write_parts(room, galleries, values["title"], {}, most, len(newest))
        out = room / INDEX
    return write_page("predictions.html", out, gallery=first, pages=pages, images=len(newest), **values)


def _values(document: Mapping[str, Any], counts: PredictedCounts, categories: Categories) -> dict[str, Any]:
    settings = {key: document.get(key) for key in ("model", "task", "formats", "thresholds")}
    return {
        "title": f"Predictions of {document.get('model') or 'a model'}",
        "counts": counts,
        "found": sum(counts.segments.values()),
        "classes": _class_table(counts, categories),
        "scores": _score_histogram(counts),
        "settings": list(flat(settings)),
    }


def _class_table(counts: PredictedCounts, categories: Categories) -> FigureTable:
    """Return segments, images and the mean score of each class that was found, the most frequent first."""
    columns = [
        ClassColumn("segments", "segments", "", False),
        ClassColumn("images", "images", "images that show it", False),
        ClassColumn("score", "mean score, %", "", True),
    ]
    numbers = {category.name: i for i, category in enumerate(categories)}
    rows = []
    for name, count in sorted(counts.segments.items(), key=lambda item: (-item[1], item[0])):
        label = numbers.get(name)
        kind = "" if label is None else "thing" if categories[label].isthing else "stuff"
        score = 100 * counts.scores[name] / count if name in counts.scores else None
        rows.append(ClassRow(name, label, kind, [float(count), float(counts.images_of[name]), score]))
    return FigureTable(columns, rows)


def _score_histogram(counts: PredictedCounts) -> ColumnChart:
    edges = [f"{i / SCORE_STEPS:g}" for i in range(SCORE_STEPS + 1)]
    return column_chart("Scores", "score", edges, [{PREDICTED: count} for count in counts.steps], every=2)

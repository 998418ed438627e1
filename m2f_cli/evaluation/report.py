"""The document results.json of an evaluation, and comparison of measured figures with published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import NotRequired, TypedDict

from ..config.schema import Published
from ..results.writers import write_json
from .evaluate import EvalResult, without_nan

SCHEMA_VERSION = 1
RESULTS = "results.json"
SINGLE_SCALE = "single scale"
ANALYSES = ("pq-errors", "calibration", "calibration-instance")  # metrics that `evaluation.tables` shows


class ScoredModel(TypedDict):
    """The model that was evaluated."""

    name: Annotated[str, "Name of its preset or configuration."]
    source: Annotated[str, "The file or reference that it was loaded from."]
    weights: Annotated[str | None, "Start of a hash over the weights; null for predictions of other tools."]


class ScoredData(TypedDict):
    """The annotated images."""

    name: Annotated[str, "Name of the data set."]
    format: Annotated[str, "Format of its annotations, such as coco-panoptic."]
    folder: Annotated[str | None, "Its folder; null for generated images."]
    split: Annotated[str, "The split, such as val."]
    pictures: Annotated[int, "Number of images of the split."]
    full_split: Annotated[int | None, "Number of images of the published split, where one is published."]


class FailedImage(TypedDict):
    """An image that could not be scored."""

    name: Annotated[str, "Name of the image."]
    message: Annotated[str, "The error."]


class PublishedFigure(TypedDict):
    """A published figure beside the measured one, in percent."""

    metric: Annotated[str, "Name of the figure."]
    value: Annotated[float, "The published figure."]
    measured: Annotated[float, "The measured figure."]
    difference: Annotated[float, "measured - value."]
    setting: Annotated[str, "The published setting, such as single scale."]
    source: Annotated[str, "The publication."]
    verified: Annotated[bool, "False where nobody could check the published figure."]
    comparable: Annotated[bool, "True if all images of the published split were scored, in the published setting."]


class ResultsDocument(TypedDict):
    """The file results.json. Figures of quality are percent."""

    schema_version: Annotated[int, "Version of this layout."]
    model: ScoredModel
    data: ScoredData
    scored: Annotated[int, "Number of images that were scored."]
    of: Annotated[int, "Number of images of the published split, else of this one."]
    failed: Annotated[int, "Number of images that could not be scored."]
    figures: Annotated[dict[str, float | None], "Figures by name, such as pq; null where there was nothing to measure."]
    per_class: Annotated[dict[str, dict[str, dict[str, Any]]], "Metric, then class, then figure."]
    tables: Annotated[dict[str, dict[str, Any]], "What else a metric says, in a form of its own."]
    published: list[PublishedFigure]
    failures: list[FailedImage]
    seconds: Annotated[float, "Duration of the last run, which may have continued an earlier one."]
    images_per_second: Annotated[float | None, "Speed of the last run."]
    settings: Annotated[dict[str, Any], "Thresholds, precision, tta, tile, limit, max_dets, test settings, overrides."]
    notes: Annotated[list[str], "Remarks about the model and the data."]
    threshold_sweep: Annotated[NotRequired[dict[str, Any]], "The search of --sweep-thresholds."]
    query_diagnosis: Annotated[NotRequired[dict[str, Any]], "The figures of --diagnose-queries."]


@dataclass(frozen=True)
class PublishedComparison:
    """Published figure beside the measured one, in percent.

    Attributes:
        metric: the name of the figure.
        value: the published figure.
        measured: the measured figure.
        difference: measured - value.
        setting: the published setting, such as "single scale".
        source: the publication.
        verified: as in `Published`.
        comparable: True if all images of the published split were scored, in the published setting.
    """

    metric: str
    value: float
    measured: float
    difference: float
    setting: str
    source: str
    verified: bool
    comparable: bool


def compare_published(
    figures: Mapping[str, float], published: Sequence[Published], *, augmented: bool, complete: bool
) -> list[PublishedComparison]:
    """Return the published figures that were measured, too.

    With test-time augmentation they are those with augmentation, where there are any.

    Args:
        figures: the measured figures by their names.
        published: the published figures.
        augmented: True if the evaluation had test-time augmentation.
        complete: True if it scored all images of the published split, with the published thresholds.
    """
    wanted = [each for each in published if _measured(figures, each.metric) is not None]
    own = [each for each in wanted if (each.setting != SINGLE_SCALE) == augmented]
    rows = []
    for each in own or wanted:
        measured = _measured(figures, each.metric)
        rows.append(
            PublishedComparison(
                each.metric,
                each.value,
                measured,
                measured - each.value,
                each.setting,
                each.source,
                each.verified,
                complete and each in own,
            )
        )
    return rows


def _measured(figures: Mapping[str, float], metric: str) -> float | None:
    value = figures.get(metric)
    return None if value is None or math.isnan(value) else float(value)


def document(
    result: EvalResult,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    published: Sequence[PublishedComparison] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the tree of results.json, in which NaN is null."""
    tables = {name: figures["tables"] for name, figures in result.metrics.items() if figures.get("tables")}
    return without_nan(
        {
            "schema_version": SCHEMA_VERSION,
            "model": dict(model),
            "data": dict(data),
            "scored": result.images,
            "of": data.get("full_split") or data.get("pictures"),
            "failed": len(result.failures),
            "figures": result.figures,
            "per_class": {name: each["per_class"] for name, each in result.metrics.items() if "per_class" in each},
            "tables": tables,
            "published": [asdict(each) for each in published],
            "failures": [asdict(each) for each in result.failures],
            "seconds": round(result.seconds, 3),
            "images_per_second": round(result.images / result.seconds, 3) if result.seconds else None,
            "settings": dict(settings),
            "notes": list(notes),
        }
    )


def write(folder: Path, tree: Mapping[str, Any]) -> Path:
    [path] = write_json(folder / RESULTS, tree)
    return path


# --- tables for people ------------------------------------------------------------------------------------------------


def headline_rows(result: EvalResult) -> list[list[str]]:
    """Return [figure, value] of every metric without tables of its own for people (`tables.py`), in their order."""
    shown = {name: figures for name, figures in result.metrics.items() if name not in ANALYSES}
    return [[name, _text(value)] for name, value in EvalResult(shown, 0.0, 0).figures.items()]


def class_rows(result: EvalResult, metric: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a metric's table of classes, best first by its first figure.

    Classes without that figure come last.
    """
    table: Mapping[str, Mapping[str, float]] = result.metrics[metric].get("per_class", {})
    columns = list(dict.fromkeys(key for row in table.values() for key in row))
    first = columns[0] if columns else ""

    def order(item: tuple[str, Mapping[str, float]]) -> float:
        value = item[1].get(first, math.nan)
        return math.inf if math.isnan(value) else -value

    rows = [[name, *(_text(row.get(key)) for key in columns)] for name, row in sorted(table.items(), key=order)]
    return ["class", *columns], rows


def published_rows(published: Sequence[PublishedComparison]) -> list[list[str]]:
    return [
        [
            each.metric,
            _text(each.measured),
            _text(each.value) + ("" if each.verified else "?"),
            f"{each.difference:+.2f}",
            each.setting,
            each.source,
        ]
        for each in published
    ]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)

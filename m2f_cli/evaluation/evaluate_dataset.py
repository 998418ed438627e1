"""Evaluation of a model on an open data set, without a folder and without a journal: `m2f_cli.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..data.records import DataSet
from ..inference.segmenter import Segmenter
from .choose_metrics import choose, known_names
from .dataset import check_classes
from .evaluate import EvalProgress, EvalResult
from .evaluate import evaluate as evaluate_records


def evaluate(
    model: Segmenter,
    dataset: DataSet,
    metrics: Sequence[str] = (),
    *,
    limit: int | None = None,
    workers: int = 2,
    on_progress: Callable[[EvalProgress], None] | None = None,
    trust_code: bool = False,
    **thresholds: float | int | None,
) -> EvalResult:
    """Run a model over the images of a data set and compute metrics, as published.

    Args:
        model: the model.
        dataset: a data set from `open_dataset`. Its classes are those of the model, in the same order.
        metrics: names such as "pq", or "all"; by default the metric of the model's own task.
        limit: the number of images, from the first; all by default.
        workers: threads that read images.
        on_progress: receives a record after each image.
        trust_code: True if `metrics` may be "module:object".
        thresholds: score_threshold (0 by default, as published), object_threshold, overlap_threshold, top_k.

    Raises:
        ConfigError: a metric is unknown, or does not apply to the model.
        DataError: the classes differ, or there is nothing to measure.
    """
    check_classes(model.categories, dataset.categories, dataset.name)
    names = known_names(metrics)
    chosen, notes = choose(
        names, model.categories, model.tasks, model.default_task, model=model.source, trust_code=trust_code
    )
    records = dataset.records[:limit]
    result = evaluate_records(model, records, chosen, on_progress=on_progress, workers=workers, **thresholds)
    result.notes += [*dataset.notes, *notes]
    return result

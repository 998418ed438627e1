"""Evaluation of a model on an open data set, and its page: `m2f_cli.evaluate`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.records import DataSet, Record
from ..evaluation import journal, report, views
from ..evaluation.choose_metrics import choose, known_names
from ..evaluation.dataset import check_classes
from ..evaluation.evaluate import Annotations, EvalProgress, EvalResult, Measured, scored
from ..inference.segmenter import Segmenter
from ..report.evaluation import PAGE, write_evaluation_page
from ..results.types import Result
from ..results.views import EDGE, NAME, header_of
from ..runtime.files import write_json
from ..runtime.notebook import show_page
from ..structures import Task
from ..structures.annotations import Annotation


@dataclass
class ShownEvaluation(EvalResult):
    """Result of an evaluation that can show itself; see `EvalResult` for its figures.

    Attributes:
        model, data, settings: what was evaluated, as in results.json.
        kept: folder with the images in small, which is removed with this object; None where none were kept.
    """

    model: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    data: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    settings: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    kept: tempfile.TemporaryDirectory[str] | None = field(default=None, kw_only=True, repr=False, compare=False)

    def write_page(self, path: str | Path) -> Path:
        """Write the report as one HTML page and return it, with more than 500 images as a folder of pages.

        Raises:
            M2FError: the page cannot be written.
        """
        with tempfile.TemporaryDirectory(prefix="m2f-") as empty:
            folder = Path(empty if self.kept is None else self.kept.name)
            tree = report.document(self, model=self.model, data=self.data, settings=self.settings, notes=self.notes)
            write_json(folder / report.RESULTS, tree)
            return write_evaluation_page(folder, Path(path))

    def show(self) -> None:
        """Show the report: in a frame below the cell of a notebook, else in the browser.

        The page is written to a folder for temporary files of the system, where it stays.

        Raises:
            M2FError: the page cannot be written, or there is no browser.
        """
        show_page(self.write_page(Path(tempfile.mkdtemp(prefix="m2f-")) / PAGE))


def evaluate(
    model: Segmenter,
    dataset: DataSet,
    metrics: Sequence[str] = (),
    *,
    limit: int | None = None,
    workers: int = 2,
    on_progress: Callable[[EvalProgress], None] | None = None,
    thumbnails: int = EDGE,
    trust_code: bool = False,
    **thresholds: float | int | None,
) -> ShownEvaluation:
    """Run a model over the images of a data set and compute metrics, as published.

    Args:
        model: the model.
        dataset: a data set from `open_dataset`. Its classes are those of the model, in the same order.
        metrics: names such as "pq", or "all"; by default the metric of the model's own task.
        limit: the number of images, from the first; all by default.
        workers: threads that read images.
        on_progress: receives a record after each image.
        thumbnails: longest edge in pixels of the images that the result keeps for its page; 0 keeps none.
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
    started = time.perf_counter()
    measured = Measured(chosen)
    kept = tempfile.TemporaryDirectory(prefix="m2f-") if thumbnails else None

    def view(record: Record, results: Mapping[Task, Result], annotation: Annotation | Annotations) -> Any:
        return views.view_if_comparable(record, results, annotation, model.categories, thumbnails)

    with ExitStack() as stack:
        if kept is not None:
            tasks = list(dict.fromkeys(metric.task for metric in chosen.values()))
            path, header = Path(kept.name) / NAME, header_of(tasks, model.categories)
            add = stack.enter_context(journal.appending(path, header))
        records = dataset.records[:limit]
        options = {"score_threshold": 0.0, **thresholds}
        images = scored(model, records, chosen, workers=workers, on_results=kept and view, **options)
        stack.enter_context(closing(images))
        for number, each in enumerate(images):
            measured.add(each)
            if each.saved and each.message is None:
                add({**each.saved, "number": number})
            if on_progress is not None:
                on_progress(EvalProgress(each.name, number + 1, each.message))
    measured.seconds = time.perf_counter() - started
    result = ShownEvaluation(**vars(measured.result()), kept=kept)
    result.notes += [*dataset.notes, *notes]
    result.model = {"name": model.source, "source": model.source, "weights": None}
    data = {"name": dataset.name, "format": dataset.format, "split": dataset.split}
    result.data = {**data, "pictures": len(dataset), "full_split": None}
    result.settings = {**options, "limit": limit, "metrics": list(chosen)}
    return result

"""Evaluation in a folder: it can be stopped and go on, and several processes can share it.

    OUT/pictures.jsonl        the journal (`evaluation.journal`); the figures are computed from it, image by image in
                              the order of the split, however often it was stopped and however many processes wrote it
    OUT/views.jsonl           images and segments in small, for a page (`evaluation.views`), where `thumbnails` is not 0
    OUT/predictions/          what `save` names, as `m2f predict` lays it out

The processes of a torch.distributed group need one folder that all of them see.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.records import Record
from ..errors import ConfigError, DataError
from ..inference.base import BaseSegmenter
from ..inference.provenance import weights_hash
from ..inference.stream import Streamer, stream
from ..metrics import Metric
from ..results.draw_options import DrawOptions
from ..results.places import Places
from ..results.types import Result
from ..results.views import NAME
from ..results.views import header_of as header_of_views
from ..runtime import distributed
from ..runtime.files import is_part, remove_parts, writing_to
from ..runtime.locks import is_lock, locked
from ..structures import Task
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from . import journal, views
from .evaluate import (
    Annotations,
    EvalFailure,
    EvalProgress,
    EvalResult,
    Measured,
    OnResults,
    Scored,
    scored,
    share,
)
from .save_predictions import PredictionWriter, Saver

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class EvalRun:
    """Evaluation in a folder, with all that it needs.

    Attributes:
        folder: the output folder.
        segmenter: the model.
        records: the images of the whole split.
        metrics: name → metric, fresh.
        header: plain values that identify the evaluation, from `header_of`. A folder takes only one.
        limit: number of images, from the first, that are evaluated; None is all.
        workers: threads that read.
        save: names of writers; the predictions are written while they are scored.
        thresholds: score_threshold, object_threshold, overlap_threshold, top_k, as in `Segmenter.finish`.
        trust_code: True if `save` may name code ("module:function").
        draw: what overlays draw, and how.
        thumbnails: longest edge of the images in views.jsonl, in pixels; 0 writes no views.
    """

    folder: Path
    segmenter: BaseSegmenter
    records: Sequence[Record]
    metrics: Mapping[str, Metric]
    header: Mapping[str, Any]
    limit: int | None = None
    workers: int = 2
    save: Sequence[str] = ()
    thresholds: Mapping[str, float | int | None] = field(default_factory=dict)
    trust_code: bool = False
    draw: DrawOptions | None = None
    thumbnails: int = 0

    @property
    def tasks(self) -> list[Task]:
        return list(dict.fromkeys(metric.task for metric in self.metrics.values()))

    @property
    def count(self) -> int:
        return len(self.records) if self.limit is None else min(self.limit, len(self.records))


def run(
    evaluation: EvalRun,
    *,
    resume: bool = False,
    on_progress: Callable[[EvalProgress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    streamer: Streamer = stream,
) -> EvalResult:
    """Evaluate, in this process or in all of a torch.distributed group; the result is that of the whole.

    Args:
        evaluation: the evaluation.
        resume: go on in a folder where such an evaluation was begun. Images that were scored are not scored again,
            those that failed are. Figures are equal to those of an evaluation that was never stopped, to the last bit.
        on_progress: receives a record after each image of this process.
        on_start: receives the number of images that this process will score.
        streamer: what sends the images through the model; by default this process alone.

    Raises:
        ConfigError: the folder is in use, also by another process, or holds another evaluation.
        DataError: a journal is damaged.
        M2FError: nothing could be scored, or a file cannot be written.
    """
    started = time.perf_counter()
    rank = distributed.rank()
    with ExitStack() as stack:  # holds the lock of the folder, in the first process
        todo = distributed.on_main(lambda: _claim(evaluation, resume, stack))
        own = list(share(todo, rank, distributed.world_size()))
        if on_start is not None:
            on_start(len(own))
        with _saver(evaluation, rank) as saver:
            _score(evaluation, own, rank, saver, on_progress, streamer)
        seconds = max(distributed.gather(time.perf_counter() - started))
        return distributed.on_main(lambda: _conclude(evaluation, seconds))


def header_of(segmenter: BaseSegmenter, names: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Return plain values that identify an evaluation: hashes of weights and of names of images, and the settings."""
    images = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()[:16]
    config = getattr(segmenter, "config", None)
    return {
        "schema_version": 1,
        "model": segmenter.source,
        "weights": weights_hash(getattr(segmenter, "model", None)),
        "categories": [category.to_dict() for category in segmenter.categories],
        "test": None if config is None else config.test.model_dump(mode="json"),
        "pictures": images,
        **settings,
    }


def scored_names(evaluation: EvalRun) -> list[str]:
    """Return the names of the images that were scored, in the order of the split."""
    lines = journal.read(journal.journal_of(evaluation.folder))
    return [line["name"] for line in lines if "error" not in line and line["number"] < evaluation.count]


# --- parts of a run ---------------------------------------------------------------------------------------------------


def _claim(evaluation: EvalRun, resume: bool, stack: ExitStack) -> list[int]:
    """Lock the folder for this evaluation and this process as long as the stack is open.

    Returns:
        The numbers of the images that are still to be scored.
    """
    folder, header = evaluation.folder, dict(evaluation.header)
    with writing_to(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; --out takes a folder.")
    stack.enter_context(locked(folder, "An evaluation"))
    is_used = any(not (is_lock(path) or is_part(path)) for path in folder.iterdir())
    if is_used and not journal.is_begun(folder):  # a training's config.yaml and env.json would be replaced
        raise ConfigError(f"{folder} holds files already, and no evaluation.", hint="Choose another --out.")
    if is_used and not resume:
        raise ConfigError(
            f"The evaluation {folder} exists already.", hint="Use --resume to go on with it, or another --out."
        )
    remove_parts(folder)
    if evaluation.save:
        places = Places(folder / PREDICTIONS, evaluation.save)
        for record in evaluation.records[: evaluation.count]:
            places.claim(record.name, getattr(record, "image", None))
    journal.check_header(folder, header)
    journal.consolidate(folder, header)
    journal.consolidate(folder, _views_header(evaluation), NAME)
    with journal.appending(journal.journal_of(folder), header):
        pass  # before all other files: by it, the folder is known as an evaluation
    done = journal.finished(folder)
    if evaluation.save and done:  # an image whose predictions are missing is scored again
        with _saver(evaluation, 0) as saver:
            saver.gather()
            done = {
                number for number in done if number >= evaluation.count or saver.is_saved(evaluation.records[number])
            }
    return [number for number in range(evaluation.count) if number not in done]


def _saver(evaluation: EvalRun, rank: int) -> Saver | ExitStack:
    if not evaluation.save:
        return ExitStack()
    folder = evaluation.folder / PREDICTIONS
    return Saver(
        folder,
        evaluation.save,
        evaluation.segmenter,
        evaluation.metrics,
        evaluation.header,
        rank,
        draw=evaluation.draw,
        trust_code=evaluation.trust_code,
    )


def _score(
    evaluation: EvalRun,
    numbers: Sequence[int],
    rank: int,
    saver: Any,
    on_progress: Callable[[EvalProgress], None] | None,
    streamer: Streamer,
) -> None:
    records = (evaluation.records[number] for number in numbers)
    images = scored(
        evaluation.segmenter,
        records,
        evaluation.metrics,
        workers=evaluation.workers,
        on_results=_on_results(evaluation, saver),
        streamer=streamer,
        **evaluation.thresholds,
    )
    path = journal.journal_of(evaluation.folder, rank)
    with ExitStack() as stack:
        add_view = stack.enter_context(_views(evaluation, rank))
        add = stack.enter_context(journal.appending(path, dict(evaluation.header)))
        stack.enter_context(closing(images))
        for done, (number, each) in enumerate(zip(numbers, images, strict=True), 1):
            entry, view = each.saved or (None, None)
            if entry is not None:  # before the journal: an image in the journal is never done again
                saver.append(entry)
            if view is not None and each.message is None:
                add_view({**view, "number": number})
            add(_line(number, each))
            if on_progress is not None:
                on_progress(EvalProgress(each.name, done, each.message))


def _on_results(evaluation: EvalRun, saver: Any) -> OnResults | None:
    """Return what threads do with the results of an image: its predictions are written, and its view is made."""
    writer = saver.writer if isinstance(saver, Saver) else None
    if writer is None and not evaluation.thumbnails:
        return None
    return _HandOn(writer, evaluation.segmenter.categories, evaluation.thumbnails)


@dataclass(frozen=True)
class _HandOn:
    """Function of the results of an image beside scoring: it gives (entry of the predictions, view).

    Attributes:
        writer: writes the predictions; None writes none.
        categories: the classes.
        edge: longest edge of a view in pixels; 0 makes none.
    """

    writer: PredictionWriter | None
    categories: Categories
    edge: int

    def __call__(
        self, record: Record, results: Mapping[Task, Result], annotation: Annotation | Annotations
    ) -> tuple[Any, Any]:
        edge = self.edge
        view = views.view_if_comparable(record, results, annotation, self.categories, edge) if edge else None
        return (None if self.writer is None else self.writer.write(record, results)), view


def _views(evaluation: EvalRun, rank: int) -> AbstractContextManager[Callable[[journal.Line], Any]]:
    if not evaluation.thumbnails:
        return nullcontext(lambda line: None)
    path = journal.journal_of(evaluation.folder, rank, NAME)
    return journal.appending(path, _views_header(evaluation))


def _views_header(evaluation: EvalRun) -> dict[str, Any]:
    return header_of_views(evaluation.tasks, evaluation.segmenter.categories)


def _line(number: int, image: Scored) -> journal.Line:
    line = {"name": image.name, "number": number, "seconds": round(image.seconds, 6)}
    if image.message is not None:
        return {**line, "error": image.message}
    return {**line, "metrics": {name: part.state() for name, part in image.parts.items()}}


def _conclude(evaluation: EvalRun, seconds: float) -> EvalResult:
    """Put all journals together and compute the figures from them."""
    journal.consolidate(evaluation.folder, dict(evaluation.header))
    journal.consolidate(evaluation.folder, _views_header(evaluation), NAME)
    names: list[str] = []
    measured = Measured({name: metric.fresh() for name, metric in evaluation.metrics.items()}, seconds)
    for line in journal.read(journal.journal_of(evaluation.folder)):
        if line["number"] >= evaluation.count:  # left by an earlier run with a higher --limit
            continue
        names.append(line["name"])
        if "error" in line:
            measured.failures.append(EvalFailure(line["name"], line["error"]))
            continue
        states = line.get("metrics")
        if not isinstance(states, dict) or not measured.metrics.keys() <= states.keys():
            raise DataError(
                f"The journal of {evaluation.folder} is damaged: {line['name']} lacks a metric.",
                hint="Choose another --out, and evaluate again.",
            )
        for name, metric in measured.metrics.items():
            metric.restore(states[name])
        measured.images += 1
    if evaluation.save:
        with _saver(evaluation, 0) as saver:
            saver.conclude(names)
    return measured.result()

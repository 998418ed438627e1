"""Dry run of an evaluation: all is prepared, a few images are measured, and nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config.schema import Config
from ..data.records import Record
from ..dataset_tools.check.glimpse import Glimpse, evenly, glimpse
from ..inference.base import innermost
from ..runtime.memory import Memory
from ..structures.annotations import Annotation
from .evaluate import Annotations, measure
from .setup import Evaluation

EXAMINED = 50  # images
MEASURED = 3  # images, after a first one that is slower


@dataclass(frozen=True)
class EvalDryRun:
    """Outlook on an evaluation.

    Attributes:
        settings: the configuration of the model, with the changes of the user.
        changes: the changes of the user, such as {"test.top_k": "50", "object_threshold": 0.5}.
        metrics: names of the metrics.
        images: glimpse of the images.
        evaluated: number of images that would be evaluated.
        problems: reasons why some of the images could not be scored, as far as it was seen.
        parameters: number of parameters. None: an exported file does not tell.
        image_seconds: seconds of an image.
        memory: as `Memory.growth` gives it.
    """

    settings: Config
    changes: dict[str, Any]
    metrics: tuple[str, ...]
    images: Glimpse
    evaluated: int
    problems: tuple[str, ...]
    parameters: int | None
    image_seconds: float
    memory: dict[str, float | None]

    @property
    def seconds(self) -> float:
        """Estimate of the whole evaluation."""
        return self.evaluated * self.image_seconds


def dry_run(evaluation: Evaluation, clock: Callable[[], float] = time.perf_counter) -> EvalDryRun:
    """Look at the images of an evaluation and measure a few of them.

    Args:
        clock: gives seconds.
    """
    run = evaluation.run
    records = list(run.records[: run.count])
    seen = glimpse([_with_main_annotation(record) for record in records], len(run.segmenter.categories), EXAMINED)
    memory = Memory(run.segmenter.device)
    measure(run.segmenter, records[:1], run.metrics, workers=1, **run.thresholds)
    few = evenly(records, MEASURED)
    began = clock()
    measured = measure(run.segmenter, few, run.metrics, workers=run.workers, **run.thresholds)
    seconds = (clock() - began) / max(1, len(few))
    failures = (f"{each.name}: {each.message}" for each in measured.failures)
    overrides = (pair.partition("=") for pair in evaluation.model.overrides)
    thresholds = {name: value for name, value in evaluation.metrics.thresholds.items() if value is not None}
    model = getattr(innermost(run.segmenter), "model", None)
    return EvalDryRun(
        evaluation.config,
        {key: value for key, _, value in overrides} | thresholds,
        tuple(run.metrics),
        dataclasses.replace(seen, images=len(run.records)),
        len(records),
        tuple(dict.fromkeys((*seen.problems, *failures))),
        None if model is None else sum(each.numel() for each in model.parameters()),
        seconds,
        memory.growth(),
    )


@dataclass(frozen=True)
class _MainAnnotation:
    """Reader of the annotation that most tasks of an image have in common."""

    record: Record

    def __call__(self) -> Annotation:
        annotation = self.record.read_annotation()
        return annotation.main if isinstance(annotation, Annotations) else annotation


def _with_main_annotation(record: Record) -> Record:
    return dataclasses.replace(record, read_annotation=_MainAnnotation(record))

"""Setup of an evaluation from the options of a user: model, data and metrics that fit each other."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import presets as config
from ..config.run_folder import CONFIG, ENVIRONMENT, run_of
from ..config.schema import Config
from ..errors import ConfigError
from ..inference.base import BaseSegmenter, innermost
from ..inference.load import DEFAULT_MODELS, ModelOptions, open_model
from ..inference.stream import Streamer, stream
from ..metrics import Metric
from ..results.class_names import numbers_of
from ..results.draw_options import DrawOptions
from ..results.writers import write_json
from ..runtime import distributed
from ..runtime.files import write_text
from ..version import __version__
from . import report
from .choose_metrics import ALL, choose, known_names, task_for
from .dataset import TASKS, EvalData, folder_of, open_for
from .evaluate import EvalProgress, EvalResult
from .query_stability import QueryDiagnosis, diagnose_queries
from .report import PublishedComparison
from .run import EvalRun, header_of, run, scored_names
from .threshold_sweep import Sweep, sweep

MAY_CHANGE = ("test", "data", "input")
SETTINGS = ("thresholds", "max_dets", "precision", "tta", "tile", "tile_overlap", "test")
PUBLISHED_SCORE_THRESHOLD = 0.0  # keeps the published top k


@dataclass(frozen=True)
class DataOptions:
    """Options of the annotated images that a model is evaluated on.

    Attributes:
        data: their folder; None: the data that the model was trained for, see `dataset.folder_of`.
        split: the name of the split.
        limit: number of images, from the first; None is all.
    """

    data: Path | str | None = None
    split: str = "val"
    limit: int | None = None


@dataclass(frozen=True)
class MetricOptions:
    """Options of the metrics, and of the results that they take.

    Attributes:
        metrics: names, or "all"; none: the metric that the model's task is judged by.
        max_dets: most objects of an image and class, for average precision.
        thresholds: object_threshold, overlap_threshold, score_threshold, top_k; without a value as published.
        trust_names: allow names of metrics, and of formats to save, to be code ("module:object").
    """

    metrics: Sequence[str] = ()
    max_dets: int | None = None
    thresholds: Mapping[str, float | int | None] = field(default_factory=dict)
    trust_names: bool = False


@dataclass(frozen=True)
class RunOptions:
    """Options of the run of an evaluation, and of its further outputs.

    Attributes:
        workers: threads that read.
        save: names of writers of predictions.
        sweep: run the network once more, to search for the best thresholds.
        diagnose: run it once more, to measure what each layer changes (MP-Former's measures).
        draw: what overlays draw, and how.
        thumbnails: longest edge of the images that are kept for a report, in pixels; 0 keeps none.
    """

    workers: int = 2
    save: Sequence[str] = ()
    sweep: bool = False
    diagnose: bool = False
    draw: DrawOptions = field(default_factory=DrawOptions)
    thumbnails: int = 0


def with_default(model: ModelOptions, metrics: MetricOptions) -> ModelOptions:
    """Return `model`; where it names no model, with the default model of the metrics."""
    if model.ref or model.preset:
        return model
    task = model.task or task_for(known_names(metrics.metrics), trust_code=metrics.trust_names)
    return replace(model, ref=DEFAULT_MODELS[task])


def name_of(model: ModelOptions, data: DataOptions, metrics: MetricOptions) -> str:
    """Return the default name of an evaluation."""
    path = run_of(Path(model.preset or with_default(model, metrics).ref))
    parts = [path.name if path.is_dir() else re.sub(r"\.(ya?ml|safetensors|pth|pkl|pt2?|onnx|xml)$", "", path.name)]
    parts += [data.split] if data.split != "val" else []
    parts += ["tta"] if model.tta else []
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts) or "model"


@dataclass(frozen=True)
class Evaluation:
    """Evaluation that is ready to run, and the options that it was made from."""

    model: ModelOptions
    data: DataOptions
    metrics: MetricOptions
    options: RunOptions
    run: EvalRun
    config: Config
    images: EvalData
    notes: tuple[str, ...]


def prepare(
    folder: Path,
    model: ModelOptions,
    data: DataOptions | None = None,
    metrics: MetricOptions | None = None,
    options: RunOptions | None = None,
    *,
    progress: Callable | None = None,
) -> Evaluation:
    """Load the model, open its data and make the metrics; nothing is written.

    Args:
        folder: the folder of the evaluation.
        model: options of the model. Its `task` is the only one that is measured; None: all tasks of the model.
        data: options of the data.
        metrics: options of the metrics.
        options: options of the run.
        progress: receives the progress of downloads.

    Raises:
        ConfigError: the options do not fit each other.
        DataError: the data do not fit the model.
        WeightsError: the weights cannot be used.
    """
    data, metrics, options = data or DataOptions(), metrics or MetricOptions(), options or RunOptions()
    wrong = [pair for pair in model.overrides if pair.partition(".")[0] not in MAY_CHANGE]
    if wrong:
        raise ConfigError(
            f"--set {wrong[0]} has no effect on an evaluation.", hint=f"It may change: {', '.join(MAY_CHANGE)}."
        )
    names = known_names(metrics.metrics)
    segmenter = open_model(with_default(model, metrics), progress=progress)
    numbers_of(options.draw.classes, segmenter.categories)  # an unknown name fails before the first image
    if options.sweep:
        segmenter.check_task("panoptic")
    chosen, notes = choose(
        names,
        segmenter.categories,
        [model.task] if model.task else list(segmenter.tasks),
        segmenter.default_task,
        max_dets=metrics.max_dets,
        model=segmenter.source,
        trust_code=metrics.trust_names,
    )
    needed = [task for task in TASKS if task in {metric.task for metric in chosen.values()}]
    needed = list(dict.fromkeys(["panoptic", *needed])) if options.sweep else needed
    images = open_for(
        segmenter.config,
        segmenter.categories,
        folder_of(segmenter.config, model.ref, data.data),
        data.split,
        needed,
        every=names != [ALL],
    )
    chosen = {name: metric for name, metric in chosen.items() if metric.task in images.tasks}
    run = _run(folder, segmenter, images, chosen, model, data, metrics, options)
    notes = (*segmenter.notes, *images.notes, *notes)
    return Evaluation(model, data, metrics, options, run, segmenter.config, images, notes)


def _run(
    folder: Path,
    segmenter: BaseSegmenter,
    images: EvalData,
    chosen: dict[str, Metric],
    model: ModelOptions,
    data: DataOptions,
    metrics: MetricOptions,
    options: RunOptions,
) -> EvalRun:
    """Return the run of an evaluation, with the header of its journal."""
    asked = {key: value for key, value in metrics.thresholds.items() if value is not None}
    thresholds = {"score_threshold": PUBLISHED_SCORE_THRESHOLD, **asked}
    header = header_of(
        segmenter,
        [record.name for record in images.records],
        split=data.split,
        data=images.name,
        metrics=sorted(chosen),
        thresholds=thresholds,
        max_dets=metrics.max_dets,
        precision=segmenter.precision,
        tta=model.tta,
        tile=model.tile,
        tile_overlap=model.tile_overlap if model.tile else None,
        save=list(options.save),
    )
    return EvalRun(
        folder,
        segmenter,
        images.records,
        chosen,
        header,
        data.limit,
        options.workers,
        options.save,
        thresholds,
        metrics.trust_names,
        options.draw,
        options.thumbnails,
    )


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalOutcome:
    """Outcome of an evaluation.

    Attributes:
        result: the figures.
        published: the comparison with published figures.
        tree: the tree of results.json.
        names: the names of the scored images, in their order.
        sweep: the search for thresholds, where it was asked for.
        diagnosis: the diagnosis of the queries, where it was asked for.
    """

    result: EvalResult
    published: list[PublishedComparison]
    tree: dict[str, Any]
    names: list[str]
    sweep: Sweep | None = None
    diagnosis: QueryDiagnosis | None = None


def execute(
    evaluation: Evaluation,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    on_progress: Callable[[EvalProgress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    streamer: Streamer = stream,
) -> EvalOutcome:
    """Run an evaluation and write config.yaml, env.json and results.json beside its journal.

    Args:
        evaluation: the evaluation.
        resume: as in `evaluation.run.run`.
        command: the command line, for the record.
        on_progress: as in `evaluation.run.run`.
        on_start: as in `evaluation.run.run`.
        streamer: as in `evaluation.run.run`. The sweep and the diagnosis do without it.
    """
    is_main = distributed.rank() == 0

    def started(count: int) -> None:
        if is_main:
            _write_records(evaluation, command)
        if on_start is not None:
            on_start(count)

    result = run(evaluation.run, resume=resume, on_progress=on_progress, on_start=started, streamer=streamer)
    sweep_result = _sweep(evaluation) if evaluation.options.sweep and is_main else None
    diagnosis = _diagnose(evaluation) if evaluation.options.diagnose and is_main else None
    outcome = _outcome(evaluation, result, sweep_result, diagnosis)
    if is_main:
        report.write(evaluation.run.folder, outcome.tree)
    return outcome


def _sweep(evaluation: Evaluation) -> Sweep:
    records = evaluation.run.records[: evaluation.run.count]
    return sweep(evaluation.run.segmenter, records, workers=evaluation.run.workers)


def _diagnose(evaluation: Evaluation) -> QueryDiagnosis:
    run = evaluation.run
    return diagnose_queries(innermost(run.segmenter), run.records[: run.count], task=evaluation.model.task)


def _outcome(
    evaluation: Evaluation, result: EvalResult, sweep_result: Sweep | None, diagnosis: QueryDiagnosis | None
) -> EvalOutcome:
    model, metrics, images, header = evaluation.model, evaluation.metrics, evaluation.images, evaluation.run.header
    chosen = [value for value in metrics.thresholds.values() if value is not None]
    as_published = not (chosen or model.tile or model.overrides or metrics.max_dets)
    published = report.compare_published(
        result.figures,
        evaluation.config.published,
        augmented=model.tta,
        complete=as_published and result.images == images.full,
    )
    tree = report.document(
        result,
        model={"name": evaluation.config.name, "source": header["model"], "weights": header["weights"]},
        data={
            "name": images.name,
            "format": images.format,
            "folder": images.folder and str(images.folder),
            "split": images.split,
            "pictures": len(images),
            "full_split": images.full,
        },
        settings={key: header[key] for key in SETTINGS}
        | {"limit": evaluation.data.limit, "overrides": list(model.overrides)},
        published=published,
        notes=evaluation.notes,
    )
    names = scored_names(evaluation.run)
    _name_images(tree, names)
    if sweep_result is not None:
        tree["threshold_sweep"] = sweep_result.to_dict()
    if diagnosis is not None:
        tree["query_diagnosis"] = diagnosis.to_dict()
    return EvalOutcome(result, published, tree, names, sweep_result, diagnosis)


def _name_images(tree: Mapping[str, Any], names: Sequence[str]) -> None:
    """Add the names of images to tables in which metrics give their numbers."""
    for tables in tree["tables"].values():
        for row in tables.get("worst_pictures", ()):
            row["name"] = names[row["number"]]


def _write_records(evaluation: Evaluation, command: Sequence[str]) -> None:
    folder, model = evaluation.run.folder, dict(vars(evaluation.model))
    write_text(folder / CONFIG, config.dump(evaluation.config))
    options = {"model": model.pop("ref"), **model}
    options |= vars(evaluation.data) | vars(evaluation.metrics) | vars(evaluation.options)
    options["draw"] = asdict(evaluation.options.draw)
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    write_json(
        folder / ENVIRONMENT,
        json.loads(
            json.dumps(
                {
                    "m2f": __version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "machine": platform.platform(),
                    "device": str(evaluation.run.segmenter.device),
                    "processes": distributed.world_size(),
                    "command": list(command),
                    "options": options,
                    "notes": list(evaluation.notes),
                },
                default=list,
            )
        ),
    )

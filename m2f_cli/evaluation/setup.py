"""From what a user asks for to an evaluation that is ready to run: model, data and metrics that fit each other."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import presets as config
from ..config.schema import Config
from ..errors import ConfigError
from ..inference.base import innermost
from ..inference.load import DEFAULT_MODELS, ModelOptions, open_model
from ..results.writers import write_json
from ..runtime import distributed
from ..runtime.files import write_text
from ..version import __version__
from . import report as eval_results
from .choose_metrics import ALL, choose, known_names, task_for
from .dataset import TASKS, EvalData, folder_of, open_for
from .evaluate import EvalProgress, EvalResult
from .query_stability import QueryDiagnosis, diagnose_queries
from .report import PublishedComparison
from .run import EvalRun, header_of, run, scored_names
from .threshold_sweep import Sweep, sweep

CONFIG, ENVIRONMENT = "config.yaml", "env.json"
MAY_CHANGE = ("test", "data", "input")
SETTINGS = ("thresholds", "max_dets", "precision", "tta", "tile", "tile_overlap", "test")
PUBLISHED_SCORE_THRESHOLD = 0.0  # keeps the published top k


@dataclass(frozen=True)
class DataOptions:
    """Which annotated images a model is evaluated on.

    Attributes:
        data: their folder; None: what the model was trained for, see `dataset.folder_of`.
        limit: only the first of them.
    """

    data: Path | None = None
    split: str = "val"
    limit: int | None = None


@dataclass(frozen=True)
class MetricOptions:
    """What is measured, and from which results.

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
    """How an evaluation runs, and what it does beside measuring.

    Attributes:
        save: names of writers of predictions.
        sweep: run the network once more, to find out which thresholds would have been best.
        diagnose: run it once more, to find out what each layer changes (MP-Former's measures).
    """

    workers: int = 2
    save: Sequence[str] = ()
    sweep: bool = False
    diagnose: bool = False


def with_default(model: ModelOptions, metrics: MetricOptions) -> ModelOptions:
    """Return `model`; where it names no model, with the default one of what is measured."""
    if model.ref or model.preset:
        return model
    task = model.task or task_for(known_names(metrics.metrics), trust_code=metrics.trust_names)
    return replace(model, ref=DEFAULT_MODELS[task])


def name_of(model: ModelOptions, data: DataOptions, metrics: MetricOptions) -> str:
    """Return what an evaluation is called, unless somebody says otherwise."""
    path = Path(model.preset or with_default(model, metrics).ref)
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    parts = [path.name if path.is_dir() else re.sub(r"\.(ya?ml|safetensors|pth|pkl|pt2?|onnx|xml)$", "", path.name)]
    parts += [data.split] if data.split != "val" else []
    parts += ["tta"] if model.tta else []
    return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts) or "model"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run, and the options that it was made from."""

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
    """Load the model, open its data, make the metrics; nothing is written.

    Args:
        folder: of the evaluation.
        model: its `task` is the only one that is measured; None: all that the model does.
        progress: is told of downloads.

    Raises:
        ConfigError, DataError, WeightsError: something does not fit.
    """
    data, metrics, options = data or DataOptions(), metrics or MetricOptions(), options or RunOptions()
    wrong = [pair for pair in model.overrides if pair.partition(".")[0] not in MAY_CHANGE]
    if wrong:
        raise ConfigError(
            f"--set {wrong[0]} has no effect on an evaluation.", hint=f"It may change: {', '.join(MAY_CHANGE)}."
        )
    names = known_names(metrics.metrics)
    segmenter = open_model(with_default(model, metrics), progress=progress)
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
    thresholds = {
        "score_threshold": PUBLISHED_SCORE_THRESHOLD,
        **{key: value for key, value in metrics.thresholds.items() if value is not None},
    }
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
    run = EvalRun(
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
    )
    notes = (*segmenter.notes, *images.notes, *notes)
    return Evaluation(model, data, metrics, options, run, segmenter.config, images, notes)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalOutcome:
    """What came of an evaluation: the figures, how they stand to published ones, and the tree of results.json.

    names: of the scored images, in their order. sweep, diagnosis: where they were asked for.
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
) -> EvalOutcome:
    """Run an evaluation and write config.yaml, env.json and results.json beside its journal; see `eval_run.run`.

    Args:
        command: what the user typed, for the record.
    """
    is_main = distributed.rank() == 0

    def started(count: int) -> None:
        if is_main:
            _write_records(evaluation, command)
        if on_start is not None:
            on_start(count)

    result = run(evaluation.run, resume=resume, on_progress=on_progress, on_start=started)
    found = _sweep(evaluation) if evaluation.options.sweep and is_main else None
    diagnosis = _diagnose(evaluation) if evaluation.options.diagnose and is_main else None
    outcome = _outcome(evaluation, result, found, diagnosis)
    if is_main:
        eval_results.write(evaluation.run.folder, outcome.tree)
    return outcome


def _sweep(evaluation: Evaluation) -> Sweep:
    records = evaluation.run.records[: evaluation.run.count]
    return sweep(evaluation.run.segmenter, records, workers=evaluation.run.workers)


def _diagnose(evaluation: Evaluation) -> QueryDiagnosis:
    run = evaluation.run
    return diagnose_queries(innermost(run.segmenter), run.records[: run.count], task=evaluation.model.task)


def _outcome(
    evaluation: Evaluation, result: EvalResult, found: Sweep | None, diagnosis: QueryDiagnosis | None
) -> EvalOutcome:
    model, metrics, images, header = evaluation.model, evaluation.metrics, evaluation.images, evaluation.run.header
    chosen = [value for value in metrics.thresholds.values() if value is not None]
    as_published = not (chosen or model.tile or model.overrides or metrics.max_dets)
    published = eval_results.compare_published(
        result.figures,
        evaluation.config.published,
        augmented=model.tta,
        complete=as_published and result.images == images.full,
    )
    tree = eval_results.document(
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
    if found is not None:
        tree["threshold_sweep"] = found.to_dict()
    if diagnosis is not None:
        tree["query_diagnosis"] = diagnosis.to_dict()
    return EvalOutcome(result, published, tree, names, found, diagnosis)


def _name_images(tree: Mapping[str, Any], names: Sequence[str]) -> None:
    """Metrics know images by their number; people by their name."""
    for tables in tree["tables"].values():
        for row in tables.get("worst_pictures", ()):
            row["name"] = names[row["number"]]


def _write_records(evaluation: Evaluation, command: Sequence[str]) -> None:
    folder, model = evaluation.run.folder, dict(vars(evaluation.model))
    write_text(folder / CONFIG, config.dump(evaluation.config))
    options = {"model": model.pop("ref"), **model}
    options |= vars(evaluation.data) | vars(evaluation.metrics) | vars(evaluation.options)
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

"""From what a user asks for to an evaluation that is ready to run: model, data and metrics that fit each other."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import presets as config
from ..config.schema import Config
from ..errors import ConfigError
from ..inference import load
from ..inference.load import DEFAULT_MODELS, wrapped
from ..inference.segmenter import Segmenter
from ..inference.sliding_window import sliding
from ..inference.wrapper import Wrapper
from ..results.writers import write_json
from ..runtime import distributed
from ..runtime.files import write_text
from ..structures import Task
from ..structures.categories import load_categories
from ..version import __version__
from . import report as eval_results
from .choose_metrics import ALL, choose, known_names, task_for
from .dataset import TASKS, EvalData, folder_of, open_for
from .evaluate import EvalResult, Progress
from .query_stability import QueryDiagnosis, diagnose_queries
from .report import Comparison
from .run import EvalRun, header_of, run, scored_names
from .threshold_sweep import Sweep, sweep

CONFIG, ENVIRONMENT = "config.yaml", "env.json"
MAY_CHANGE = ("test", "data", "input")
SETTINGS = ("thresholds", "max_dets", "precision", "tta", "tile", "tile_overlap", "test")
PUBLISHED_SCORE_THRESHOLD = 0.0  # keeps the published top k


@dataclass(frozen=True)
class Request:
    """What is to be evaluated. Everything has a default: the panoptic default model, on its data, by PQ.

    preset: its released weights, its data, its published figures. model: other weights, as `--model` takes them.
    data: the folder of annotated pictures. metrics: names, or "all". task: only this one of the model's tasks.
    thresholds: object_threshold, overlap_threshold, score_threshold, top_k; without a value as published.
    overrides: "key=value" pairs below test, data and input.
    sweep: whether the network runs once more to find out which thresholds would have been best.
    diagnose: whether it runs once more to find out what each layer changes (MP-Former's measures).
    trust_code: whether the model's file may name code. trust_names: whether `metrics` and `save` may, as what a user
        typed may.
    """

    preset: str | None = None
    model: str | None = None
    data: Path | None = None
    split: str = "val"
    metrics: Sequence[str] = ()
    task: Task | None = None
    device: str = "auto"
    precision: str = "fp32"
    limit: int | None = None
    workers: int = 2
    thresholds: Mapping[str, float | int | None] = field(default_factory=dict)
    max_dets: int | None = None
    save: Sequence[str] = ()
    tta: bool = False
    tile: int | None = None
    tile_overlap: float = 0.25
    overrides: Sequence[str] = ()
    sweep: bool = False
    diagnose: bool = False
    trust_code: bool = False
    trust_names: bool = False
    engine: str | None = None

    @property
    def weights(self) -> str:
        """The model to load: the given one, the preset's, or the default one of what is measured."""
        if self.model or self.preset:
            return str(self.model or self.preset)
        return DEFAULT_MODELS[self.task or task_for(known_names(self.metrics), trust_code=self.trust_names)]

    @property
    def name(self) -> str:
        """What the evaluation is called, unless somebody says otherwise."""
        stem = self.preset or self.weights
        path = Path(stem)
        if path.parent.name == "checkpoints":
            path = path.parent.parent
        parts = [path.name if path.is_dir() else re.sub(r"\.(ya?ml|safetensors|pth|pkl|pt2?|onnx|xml)$", "", path.name)]
        parts += [self.split] if self.split != "val" else []
        parts += ["tta"] if self.tta else []
        return "-".join(re.sub(r"[^\w.-]+", "-", part) for part in parts) or "model"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run."""

    request: Request
    run: EvalRun
    config: Config
    data: EvalData
    notes: tuple[str, ...]


def prepare(request: Request, folder: Path, *, progress: Callable | None = None) -> Evaluation:
    """Load the model, open its data, make the metrics; nothing is written.

    Args:
        folder: of the evaluation.
        progress: is told of downloads.

    Raises:
        ConfigError, DataError, WeightsError: something does not fit.
    """
    names = known_names(request.metrics)
    model = _load(request, progress)
    tasks = [model.check_task(request.task)] if request.task else list(model.tasks)
    settings = model.config
    if request.sweep:
        model.check_task("panoptic")
    metrics, notes = choose(
        names,
        model.categories,
        tasks,
        request.task or model.default_task,
        max_dets=request.max_dets,
        model=model.source,
        trust_code=request.trust_names,
    )
    where = folder_of(settings, request.model, request.data)
    needed = [task for task in TASKS if task in {metric.task for metric in metrics.values()}]
    needed = list(dict.fromkeys(["panoptic", *needed])) if request.sweep else needed
    data = open_for(settings, model.categories, where, request.split, needed, every=names != [ALL])
    metrics = {name: metric for name, metric in metrics.items() if metric.task in data.tasks}
    thresholds = {
        "score_threshold": PUBLISHED_SCORE_THRESHOLD,
        **{key: value for key, value in request.thresholds.items() if value is not None},
    }
    # Hashed before it is wrapped: a wrapper is no network.
    header = header_of(
        model,
        [record.name for record in data.records],
        split=request.split,
        data=data.name,
        metrics=sorted(metrics),
        thresholds=thresholds,
        max_dets=request.max_dets,
        precision=model.precision,
        tta=request.tta,
        tile=request.tile,
        tile_overlap=request.tile_overlap if request.tile else None,
        save=list(request.save),
    )
    used = tuple(task for task in needed if task in data.tasks)
    seen = wrapped(model, tta=request.tta, tile=request.tile, overlap=request.tile_overlap, tasks=used)
    evaluation = EvalRun(
        folder,
        seen,
        data.records,
        metrics,
        header,
        request.limit,
        request.workers,
        request.save,
        thresholds,
        request.trust_names,
    )
    return Evaluation(request, evaluation, settings, data, (*seen.notes, *data.notes, *notes))


def _load(request: Request, progress: Callable | None) -> Segmenter:
    preset = config.load(request.preset) if request.preset else None
    if preset is not None and request.model is None and request.preset.endswith((".yaml", ".yml")):
        raise ConfigError(f"{request.preset} is a configuration without weights.", hint="Pass --model REF, too.")
    model = load.load(
        request.weights,
        device=request.device,
        precision=request.precision,
        trust_code=request.trust_code,
        progress=progress,
        engine=request.engine,
    )
    # Settings are changed before anything stands around the model: a checkpoint may itself ask for sliding windows.
    model = model.inner if isinstance(model, Wrapper) else model
    if preset is not None and request.model is not None:
        _use_preset(model, preset)
    wrong = [pair for pair in request.overrides if pair.partition(".")[0] not in MAY_CHANGE]
    if wrong:
        raise ConfigError(
            f"--set {wrong[0]} has no effect on an evaluation.", hint=f"It may change: {', '.join(MAY_CHANGE)}."
        )
    if request.overrides:
        model.config = config.overridden(model.config, request.overrides)
    return sliding(model) if model.config.test.slide is not None else model


def _use_preset(model: Segmenter, preset: Config) -> None:
    """Test other weights as a preset is tested."""
    categories = load_categories(preset.data.classes)
    if len(categories) != len(model.categories):
        raise ConfigError(
            f"The preset {preset.name} has {len(categories)} classes and {model.source} has {len(model.categories)}.",
            hint="Leave --preset out: the model says itself how it is tested.",
        )
    model.config = preset.model_copy(update={"model": model.config.model})
    model.categories = categories


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of an evaluation: the figures, how they stand to published ones, and the tree of results.json.

    names: of the scored pictures, in their order. sweep, diagnosis: where they were asked for.
    """

    result: EvalResult
    published: list[Comparison]
    tree: dict[str, Any]
    names: list[str]
    sweep: Sweep | None = None
    diagnosis: QueryDiagnosis | None = None


def execute(
    evaluation: Evaluation,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> Outcome:
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
    found = _sweep(evaluation) if evaluation.request.sweep and is_main else None
    diagnosis = _diagnose(evaluation) if evaluation.request.diagnose and is_main else None
    outcome = _outcome(evaluation, result, found, diagnosis)
    if is_main:
        eval_results.write(evaluation.run.folder, outcome.tree)
    return outcome


def _sweep(evaluation: Evaluation) -> Sweep:
    records = evaluation.run.records[: evaluation.run.count]
    return sweep(evaluation.run.segmenter, records, workers=evaluation.run.workers)


def _diagnose(evaluation: Evaluation) -> QueryDiagnosis:
    run = evaluation.run
    plain = run.segmenter.inner if isinstance(run.segmenter, Wrapper) else run.segmenter
    return diagnose_queries(plain, run.records[: run.count], task=evaluation.request.task)


def _outcome(
    evaluation: Evaluation, result: EvalResult, found: Sweep | None, diagnosis: QueryDiagnosis | None
) -> Outcome:
    request, data, header = evaluation.request, evaluation.data, evaluation.run.header
    chosen = [value for value in request.thresholds.values() if value is not None]
    as_published = not (chosen or request.tile or request.overrides or request.max_dets)
    published = eval_results.compare_published(
        result.figures,
        evaluation.config.published,
        augmented=request.tta,
        complete=as_published and result.images == data.full,
    )
    tree = eval_results.document(
        result,
        model={"name": evaluation.config.name, "source": header["model"], "weights": header["weights"]},
        data={
            "name": data.name,
            "format": data.format,
            "folder": data.folder and str(data.folder),
            "split": data.split,
            "pictures": len(data),
            "full_split": data.full,
        },
        settings={key: header[key] for key in SETTINGS}
        | {"limit": request.limit, "overrides": list(request.overrides)},
        published=published,
        notes=evaluation.notes,
    )
    names = scored_names(evaluation.run)
    _name_pictures(tree, names)
    if found is not None:
        tree["threshold_sweep"] = found.to_dict()
    if diagnosis is not None:
        tree["query_diagnosis"] = diagnosis.to_dict()
    return Outcome(result, published, tree, names, found, diagnosis)


def _name_pictures(tree: Mapping[str, Any], names: Sequence[str]) -> None:
    """Metrics know pictures by their number; people by their name."""
    for tables in tree["tables"].values():
        for row in tables.get("worst_pictures", ()):
            row["name"] = names[row["number"]]


def _write_records(evaluation: Evaluation, command: Sequence[str]) -> None:
    folder, request = evaluation.run.folder, evaluation.request
    write_text(folder / CONFIG, config.dump(evaluation.config))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(request).items()}
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

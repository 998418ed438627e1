"""m2f eval: measure a model or the prediction files of any tool, and compare evaluations."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..errors import ConfigError, DataError
from ..storage.uris import place_of
from . import completion, where
from . import options as opt
from .help_page import help_page
from .report import written, written_of

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalProgress, EvalResult
    from ..evaluation.setup import DataOptions, EvalOutcome, Evaluation, MetricOptions, RunOptions
    from ..inference.load import ModelOptions
    from ..inference.stream import Streamer

SHOWN_CLASSES = 20


@help_page(
    "m2f eval --model runs/train/small-panoptic",
    "m2f eval --preset coco-panoptic-swin-t --data coco --limit 100",
    most_used=("preset", "model", "data", "metric", "out"),
    panel="Train",
)
def evaluate(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Preset with released weights, to compare with its published figures.",
            rich_help_panel=opt.MODEL,
            autocompletion=completion.presets,
        ),
    ] = None,
    model: opt.Model = None,
    data: opt.PublishedData = None,
    split: opt.SplitName = "val",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,…",
            help="Metrics, such as pq, ap or miou, or all; repeatable. Alone it implies its task's default model.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.parts("metrics"),
        ),
    ] = None,
    task: opt.TaskOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the results; by default runs/eval/<name>.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    resume: opt.Resume = False,
    limit: opt.Limit = None,
    device: opt.Device = "auto",
    devices: opt.Devices = 1,
    on: opt.On = None,
    ray_address: opt.RayAddress = None,
    precision: opt.Precision = "fp32",
    engine: opt.Engine = None,
    workers: opt.ReaderThreads = 2,
    set_: opt.SetOverrides = None,
    object_threshold: opt.ObjectThreshold = None,
    overlap_threshold: opt.OverlapThreshold = None,
    score_threshold: opt.ScoreThreshold = None,
    top_k: opt.TopK = None,
    max_dets: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Average precision: most objects per image and class; by default 100.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    tta: opt.Tta = False,
    tile: opt.Tile = None,
    tile_overlap: opt.TileOverlap = 0.25,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep-thresholds",
            help="Panoptic: find the thresholds that are best on this data.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = False,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose-queries",
            help="Measure how much each decoder layer changes masks and matches.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = False,
    save: opt.SaveFormats = None,
    draw: opt.DrawnParts = None,
    palette: opt.Palette = "default",
    opacity: opt.Opacity = None,
    classes: opt.DrawnClasses = None,
    legend: opt.Legend = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Prediction files of any tool to score; with --ground-truth.", rich_help_panel=opt.DATA
        ),
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Annotations for --predictions: a data set or a COCO json.", rich_help_panel=opt.DATA
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="RUN_A RUN_B", help="Evaluations to compare, image by image.", rich_help_panel=opt.DATA),
    ] = None,
    dry_run: opt.DryRun = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Show all classes in the table.", rich_help_panel=opt.OUTPUT)
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            help="Write report.html, a page with figures and images.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = True,
    thumbnails: opt.Thumbnails = 320,
    trust_code: opt.TrustCode = False,
    as_json: opt.AsJson = False,
) -> None:
    """Measure a model on annotated images, score files, or compare two evaluations.

    Exit code 3: some images could not be scored; the others are.
    """
    opt.one_of("task", task, opt.TASKS)
    opt.one_of("precision", precision, (*opt.PRECISIONS, opt.AUTO))
    opt.one_of("engine", engine, plugins.table("engines"))
    where.check_engine(on, ray_address, devices > 1)
    formats, drawing = opt.listed(save), opt.draw_options(draw, palette, opacity, classes, legend)
    if dry_run and (compare or predictions or ground_truth):
        raise ConfigError("--dry-run looks at the evaluation of a model.", hint="Leave it out: files are scored fast.")
    if compare is not None:
        return _compare(*compare, opt.listed(metric), as_json, trust_code, report, out)
    if predictions is not None or ground_truth is not None:
        return _score_files(predictions, ground_truth, opt.listed(metric), max_dets, out, split, as_json, per_class)
    from ..evaluation.setup import DataOptions, MetricOptions, RunOptions, name_of
    from ..inference.load import ModelOptions
    from ..results.writers import check_drawn

    check_drawn(formats, drawing)
    thresholds = {
        "object_threshold": object_threshold,
        "overlap_threshold": overlap_threshold,
        "score_threshold": score_threshold,
        "top_k": top_k,
    }
    tested = ModelOptions(
        model,
        preset,
        task=task,  # type: ignore[arg-type]
        device=device,
        precision=precision,
        engine=engine,
        trust_code=trust_code,
        overrides=tuple(set_ or ()),
        tta=tta,
        tile=tile,
        tile_overlap=tile_overlap,
    )
    images = DataOptions(None if data is None else place_of(data), split, limit)
    by = MetricOptions(opt.listed(metric), max_dets, thresholds, trust_names=True)
    options = RunOptions(workers, formats, sweep, diagnose, drawing, thumbnails if report else 0)
    if not (preset or model or metric or task):
        raise ConfigError("Nothing says what to evaluate.", hint="Pass --preset NAME, --model REF or --metric pq.")
    folder = out or Path("runs/eval") / name_of(tested, images, by)
    if dry_run:
        return _dry_run(folder, tested, images, by, options, as_json)
    if devices > 1 and "RANK" not in os.environ:
        raise typer.Exit(_launch(devices, folder))
    _evaluate(
        folder,
        tested,
        images,
        by,
        options,
        resume=resume,
        as_json=as_json,
        per_class=per_class,
        engine=on,
        ray_address=ray_address,
    )


# --- a model ----------------------------------------------------------------------------------------------------------


def _evaluate(
    folder: Path,
    model: ModelOptions,
    data: DataOptions,
    metrics: MetricOptions,
    options: RunOptions,
    *,
    resume: bool,
    as_json: bool,
    per_class: bool,
    engine: str | None,
    ray_address: str | None,
) -> None:
    import dataclasses

    from ..evaluation import setup as eval_setup
    from ..evaluation.journal import journal_of
    from ..inference.stream import stream
    from ..runtime import distributed, jsonl
    from ..runtime.devices import choose_device

    streamer: Streamer = stream
    own = "cpu" if engine else model.device  # a cluster has devices of its own
    with distributed.group(choose_device(own)) as device, ExitStack() as stack:
        is_main = distributed.rank() == 0
        if engine:
            streamer = stack.enter_context(where.on_ray(eval_setup.with_default(model, metrics), ray_address))
        model = dataclasses.replace(model, device=str(device))
        with console.downloads() as fetched:
            evaluation = eval_setup.prepare(folder, model, data, metrics, options, progress=fetched)
        old = jsonl.remarks(journal_of(folder)) if resume else []
        for remark in (*evaluation.notes, *old) if is_main else ():
            console.note(remark)
        outcome = _run(evaluation, streamer, resume, is_main)
    if not is_main:
        return
    page = written_of(folder) if options.thumbnails else None
    if as_json:
        console.emit_json(outcome.tree)
    else:
        where.show_stages(streamer)
        _print(outcome, folder, per_class)
        console.next_steps(*_next(evaluation))
        if page is not None:
            console.out(f"Report: {page}")
    if outcome.result.failures and "RANK" not in os.environ:  # torchrun would report a crash
        raise typer.Exit(DataError.exit_code)


def _run(evaluation: Evaluation, streamer: Streamer, resume: bool, is_main: bool) -> EvalOutcome:
    """Run an evaluation; the main process shows its progress, the others their failures."""
    from ..evaluation import setup as eval_setup

    advance: Any = None
    with ExitStack() as stack:

        def start(count: int) -> None:
            nonlocal advance
            if is_main:
                advance = stack.enter_context(console.progress("Evaluating", count))

        def show(step: EvalProgress) -> None:
            if is_main:
                advance(step.message and f"{step.name}: {step.message}")
            elif step.message:
                console.warn(f"{step.name}: {step.message}")

        try:
            return eval_setup.execute(
                evaluation,
                resume=resume,
                command=["m2f", *sys.argv[1:]],
                on_progress=show,
                on_start=start,
                streamer=streamer,
            )
        except KeyboardInterrupt:
            console.note(f"To go on: the same command with --resume. What is done is in {evaluation.run.folder}.")
            raise


def _next(evaluation: Evaluation) -> list[list[str]]:
    """Return the commands that come next. An exported file is not exported again."""
    from ..evaluation.setup import with_default
    from ..inference.base import innermost

    model = with_default(evaluation.model, evaluation.metrics)
    ref = str(model.ref or model.preset)
    is_network = getattr(innermost(evaluation.run.segmenter), "model", None) is not None
    export = [["m2f", "export", "--model", ref]] if is_network else []
    return [["m2f", "predict", "IMAGES", "--model", ref], *export]


def _dry_run(
    folder: Path, model: ModelOptions, data: DataOptions, metrics: MetricOptions, options: RunOptions, as_json: bool
) -> None:
    from ..evaluation import dry_run
    from ..evaluation import setup as eval_setup
    from .dry_run import show_eval

    with console.downloads() as fetched:
        evaluation = eval_setup.prepare(folder, model, data, metrics, options, progress=fetched)
    for remark in evaluation.notes:
        console.note(remark)
    show_eval(dry_run.dry_run(evaluation), list(evaluation.notes), as_json)


def _launch(devices: int, folder: Path) -> int:
    """Run this command in several processes and return the exit code."""
    from ..evaluation.report import RESULTS
    from ..runtime import distributed

    code = distributed.launch(devices, sys.argv[1:])
    if code:
        return code
    return DataError.exit_code if json.loads((folder / RESULTS).read_text(encoding="utf-8"))["failed"] else 0


# --- files, and comparisons -------------------------------------------------------------------------------------------


def _score_files(
    predictions: Path | None,
    ground_truth: Path | None,
    metrics: tuple[str, ...],
    max_dets: int | None,
    out: Path | None,
    split: str,
    as_json: bool,
    per_class: bool,
) -> None:
    if predictions is None or ground_truth is None:
        raise ConfigError("--predictions and --ground-truth belong together.", hint="Pass both.")
    from ..evaluation import report as eval_results
    from ..evaluation.choose_metrics import ALL, known_names
    from ..evaluation.score_files.score import score

    names = known_names(metrics)
    names = _all_for(predictions, ground_truth, split) if names == [ALL] else names
    with console.progress("Scoring") as advance:
        result = score(
            predictions,
            ground_truth,
            names or None,
            split=split,
            max_dets=max_dets,
            on_progress=lambda step: advance(step.message),
            trust_code=True,
        )
    tree = eval_results.document(
        result,
        model={"name": str(predictions), "source": str(predictions), "weights": None},
        data={
            "name": ground_truth.name,
            "format": None,
            "folder": str(ground_truth),
            "split": split,
            "pictures": result.images,
            "full_split": None,
        },
        settings={"max_dets": max_dets},
        notes=result.notes,
    )
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"The folder {out} exists already.", hint="Choose another --out.")
        eval_results.write(out, tree)
    for remark in result.notes:
        console.note(remark)
    if as_json:
        console.emit_json(tree)
    else:
        _print_figures(result, str(predictions), per_class)
        console.out(f"Scored {result.images} images in {result.seconds:.1f} s.")


def _all_for(predictions: Path, ground_truth: Path, split: str) -> list[str]:
    """Return the metrics that apply to the files."""
    from ..evaluation.choose_metrics import ALL, choose
    from ..evaluation.score_files.score import open_annotation, open_predictions

    task = open_predictions(predictions).task
    categories = open_annotation(ground_truth, task, split=split).categories
    return list(choose([ALL], categories, [task], task)[0])


def _compare(
    run_a: Path,
    run_b: Path,
    metrics: tuple[str, ...],
    as_json: bool,
    trust_code: bool,
    with_page: bool,
    out: Path | None,
) -> None:
    from ..evaluation.compare import compare
    from ..report.comparison import PAGE, write_compared

    if out is not None and not with_page:
        raise ConfigError("--out is where the page of --compare goes, and --no-report asks for none.")
    if len(metrics) > 1:
        raise ConfigError(f"--compare takes one --metric, not {', '.join(metrics)}.")
    typed = bool(metrics)  # by the user; otherwise the journals name the metric
    comparison = compare(run_a, run_b, metric=metrics[0] if typed else None, trust_code=trust_code or typed)
    page = written(lambda: write_compared(comparison, out and out / PAGE)) if with_page else None
    if as_json:
        return console.emit_json(comparison.to_dict())
    _show(comparison.rows())
    console.out_text(comparison.summary())
    if page is not None:
        console.out(f"Report: {page}")


def _show(tables: list[Any]) -> None:
    for title, columns, rows in tables:
        if rows:
            console.show_table(title, columns, rows)


# --- showing ----------------------------------------------------------------------------------------------------------


def _print(outcome: EvalOutcome, folder: Path, per_class: bool) -> None:
    from ..evaluation.report import published_rows

    tree = outcome.tree
    _print_figures(outcome.result, tree["model"]["name"], per_class, outcome.names)
    _show(outcome.sweep.tables() if outcome.sweep is not None else [])
    if outcome.diagnosis is not None:
        from ..evaluation.query_stability import COLUMNS, rows

        table = [list(row) for row in rows(outcome.diagnosis)]
        console.show_table("Queries through the layers (%)", list(COLUMNS), table)
    if outcome.published:
        columns = ["figure", "measured", "published", "difference", "setting", "source"]
        console.show_table("Measured and published (?: unverified)", columns, published_rows(outcome.published))
        if not all(each.comparable for each in outcome.published):
            console.warn("not comparable as it stands: other images or settings than those of the published figure.")
    failed = f", {tree['failed']} failed" if tree["failed"] else ""
    console.out(f"Scored {tree['scored']} of {tree['of']} images{failed}. Results: {folder}")
    failures = [f"{each.name}: {each.message}" for each in outcome.result.failures]
    console.show_failures(failures, folder / "results.json")


def _print_figures(result: EvalResult, name: str, per_class: bool, names: list[str] | None = None) -> None:
    from ..evaluation import tables as error_tables
    from ..evaluation.report import ANALYSES, class_rows, headline_rows

    console.show_table(name, ["figure", "%"], headline_rows(result))
    for metric in result.metrics:
        columns, rows = ([], []) if metric in ANALYSES else class_rows(result, metric)
        if not rows:
            continue
        shown = rows if per_class or len(rows) <= SHOWN_CLASSES else rows[:SHOWN_CLASSES]
        console.show_table(f"{metric} per class", columns, shown)
        if len(shown) < len(rows):
            console.note(f"… and {len(rows) - len(shown)} more classes: --per-class shows all.")
    _show(error_tables.tables(result.metrics, names))

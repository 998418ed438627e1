"""m2f eval: how right a model is, or files that any tool wrote."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ConfigError, unknown_name
from .trust import TrustCode

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvalProgress, EvalResult
    from ..evaluation.setup import DataOptions, EvalOutcome, MetricOptions, RunOptions
    from ..inference.load import ModelOptions

TASKS = ("panoptic", "instance", "semantic")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
SOME_FAILED = 3
SHOWN_FAILURES = 5
SHOWN_CLASSES = 20


def evaluate(
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its released weights, on its data; its published figures.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="Other weights: run folder, checkpoint, Hugging Face repository.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Annotated pictures; default: the run's own, or in $DETECTRON2_DATASETS."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Of the data.")] = "val",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,…",
            help="pq, ap, miou, boundary-ap, … or all that apply; repeatable. "
            "Alone it stands for the default model of its task.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help=f"{', '.join(TASKS)}; by default what the model is for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default runs/eval/<name>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an evaluation that was stopped.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N pictures.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, …")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = 1,
    precision: Annotated[
        str, typer.Option(metavar="FORMAT", help=f"Number format of the network: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="What runs an exported file; by default what its name says.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read, and as many that finish results.")] = 2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change how it is tested; repeatable.")
    ] = None,
    object_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Panoptic: least score of a segment; default: the model's own.")
    ] = None,
    overlap_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Panoptic: least visible share of a mask; default: the model's own."),
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Instance: least score of an object; default: 0, as published.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Instance: most objects of a picture; default: the model's own.")
    ] = None,
    max_dets: Annotated[
        int | None, typer.Option(min=1, help="Average precision: most objects of a picture and class; default: 100.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Test-time augmentation: several sizes, mirrored.")] = False,
    tile: Annotated[int | None, typer.Option(min=32, metavar="N", help="Large pictures in tiles of N pixels.")] = None,
    tile_overlap: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of a tile that neighbours have in common.")
    ] = 0.25,
    sweep: Annotated[
        bool, typer.Option("--sweep-thresholds", help="Panoptic: which thresholds would have been best on this data.")
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose-queries", help="How much each decoder layer changes masks and matches.")
    ] = False,
    save: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT,…", help="Write predictions, too, as m2f predict; repeatable.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Score files that any tool wrote; with --ground-truth.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Annotations for --predictions: a data set, or a COCO json.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="RUN_A RUN_B", help="Two evaluations, picture by picture.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="All classes in the table, however many.")] = False,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="results.json on stdout.")] = False,
) -> None:
    """Measure a model on annotated pictures, score files, or compare two evaluations.

    Exit code 3: some pictures could not be scored; the others are.
    """
    _one_of("task", task, TASKS)
    _one_of("precision", precision, PRECISIONS)
    if compare is not None:
        return _compare(*compare, _listed(metric), as_json, trust_code)
    if predictions is not None or ground_truth is not None:
        return _score_files(predictions, ground_truth, _listed(metric), max_dets, out, split, as_json, per_class)
    from ..evaluation.setup import DataOptions, MetricOptions, RunOptions, name_of
    from ..inference.load import ModelOptions

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
    on = DataOptions(data, split, limit)
    by = MetricOptions(_listed(metric), max_dets, thresholds, trust_names=True)
    options = RunOptions(workers, _listed(save), sweep, diagnose)
    if not (preset or model or metric or task):
        raise ConfigError("Nothing says what to evaluate.", hint="Pass --preset NAME, --model REF or --metric pq.")
    folder = out or Path("runs/eval") / name_of(tested, on, by)
    if devices > 1 and "RANK" not in os.environ:
        raise typer.Exit(_launch(devices, folder))
    _evaluate(folder, tested, on, by, options, resume=resume, as_json=as_json, per_class=per_class)


def _one_of(kind: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise unknown_name(kind, value, known)


def _listed(given: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for text in given or () for name in text.split(",") if name.strip()))


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
) -> None:
    import dataclasses

    from ..evaluation import setup as eval_setup
    from ..runtime import distributed
    from ..runtime.devices import choose_device

    with distributed.group(choose_device(model.device)) as device, ExitStack() as stack:
        is_main = distributed.rank() == 0
        model = dataclasses.replace(model, device=str(device))
        with console.downloads() as fetched:
            evaluation = eval_setup.prepare(folder, model, data, metrics, options, progress=fetched)
        for remark in evaluation.notes if is_main else ():
            console.note(remark)
        advance: Any = None

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
            outcome = eval_setup.execute(
                evaluation, resume=resume, command=["m2f", *sys.argv[1:]], on_progress=show, on_start=start
            )
        except KeyboardInterrupt:
            console.note(f"To go on: the same command with --resume. What is done is in {folder}.")
            raise
    if not is_main:
        return
    if as_json:
        console.emit_json(outcome.tree)
    else:
        _print(outcome, folder, per_class)
    if outcome.result.failures and "RANK" not in os.environ:  # torchrun would report a crash
        raise typer.Exit(SOME_FAILED)


def _launch(devices: int, folder: Path) -> int:
    """Processes of this very command; the exit code."""
    from ..evaluation.report import RESULTS
    from ..runtime import distributed

    code = distributed.launch(devices, sys.argv[1:])
    if code:
        return code
    return SOME_FAILED if json.loads((folder / RESULTS).read_text(encoding="utf-8"))["failed"] else 0


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
        console.out(f"Scored {result.images} pictures in {result.seconds:.1f} s.")


def _all_for(predictions: Path, ground_truth: Path, split: str) -> list[str]:
    """The metrics that apply to files."""
    from ..evaluation.choose_metrics import ALL, choose
    from ..evaluation.score_files.score import open_predictions, open_truth

    task = open_predictions(predictions).task
    categories = open_truth(ground_truth, task, split=split).categories
    return list(choose([ALL], categories, [task], task)[0])


def _compare(run_a: Path, run_b: Path, metrics: tuple[str, ...], as_json: bool, trust_code: bool) -> None:
    from ..evaluation.compare import compare

    if len(metrics) > 1:
        raise ConfigError(f"--compare takes one --metric, not {', '.join(metrics)}.")
    typed = bool(metrics)  # by the user; otherwise the journals name the metric
    comparison = compare(run_a, run_b, metric=metrics[0] if typed else None, trust_code=trust_code or typed)
    if as_json:
        return console.emit_json(comparison.to_dict())
    _show(comparison.rows())
    console.out_text(comparison.summary())


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
            console.warn("not comparable as it stands: other pictures or settings than those of the published figure.")
    failed = f", {tree['failed']} failed" if tree["failed"] else ""
    console.out(f"Scored {tree['scored']} of {tree['of']} pictures{failed}. Results: {folder}")
    for each in outcome.result.failures[:SHOWN_FAILURES]:
        console.out(f"failed: {each.name}: {each.message}")
    if len(outcome.result.failures) > SHOWN_FAILURES:
        console.out(f"… and {len(outcome.result.failures) - SHOWN_FAILURES} more, all in {folder / 'results.json'}")


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

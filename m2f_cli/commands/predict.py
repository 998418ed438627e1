"""m2f predict: segment images and write the results."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..errors import ConfigError, DataError
from . import options as opt
from . import where
from .help_page import help_page
from .report import written_of

if TYPE_CHECKING:
    from ..inference.predict import Summary
    from ..inference.results_folder import ResultsFolder


@help_page(
    "m2f predict photo.jpg",
    "m2f predict photos/ --task instance --save overlay,polygons --out out/photos",
    most_used=("task", "model", "out", "save", "device"),
    panel="Segment",
)
def predict(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders (with sub-folders), globs, archives, manifests, parquet, URIs, or - for a list."
        ),
    ],
    task: opt.TaskOption = None,
    model: opt.Model = None,
    commercial: opt.Commercial = False,
    engine: opt.Engine = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results, also s3://… or gs://…; by default a new one in runs/predict.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    staging: opt.Staging = None,
    save: opt.SaveFormatsOrShards = None,
    shard_size: opt.ShardSize = 1000,
    draw: opt.DrawnParts = None,
    palette: opt.Palette = "default",
    opacity: opt.Opacity = None,
    classes: opt.DrawnClasses = None,
    legend: opt.Legend = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write report.html: one page with all images.", rich_help_panel=opt.OUTPUT),
    ] = False,
    thumbnails: opt.Thumbnails = 320,
    device: opt.Device = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="N|LIST",
            help="Processes with a model each: 4 (GPUs), or a list, such as 0,2 or cpu:2.",
            rich_help_panel=opt.SPEED,
        ),
    ] = None,
    on: opt.On = None,
    ray_address: opt.RayAddress = None,
    precision: opt.Precision = "fp32",
    compile_: opt.Compile = False,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.", rich_help_panel=opt.SPEED)] = 1,
    workers: opt.ReaderThreads = 2,
    object_threshold: opt.ObjectThreshold = None,
    overlap_threshold: opt.OverlapThreshold = None,
    score_threshold: opt.ScoreThreshold = 0.5,
    top_k: opt.TopK = None,
    tta: opt.Tta = False,
    tile: opt.Tile = None,
    tile_overlap: opt.TileOverlap = 0.25,
    skip_existing: opt.SkipExisting = False,
    overwrite: opt.Overwrite = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.AsJson = False,
) -> None:
    """Segment images.

    Exit code 3: some images could not be read; the others are done.
    """
    opt.one_of("task", task, opt.TASKS)
    opt.one_of("precision", precision, (*opt.PRECISIONS, opt.AUTO))
    opt.one_of("engine", engine, plugins.table("engines"))
    model = _for_commercial_use(model, task) if commercial else model
    formats, drawing = _formats(save), opt.draw_options(draw, palette, opacity, classes, legend)
    chosen: dict[str, Any] = {
        "task": task,
        "device": device,
        "precision": precision,
        "engine": engine,
        "trust_code": trust_code,
        "compile": compile_,
        "tta": tta,
        "tile": tile,
        "tile_overlap": tile_overlap,
    }
    where.help_the_first(model, **chosen)
    place = _place(out, staging, skip_existing=skip_existing, overwrite=overwrite)
    folder = place.folder
    images, total = _images(source)

    from ..inference import journal
    from ..inference.load import ModelOptions
    from ..inference.predict import predict as predict_all
    from ..inference.remote import RemoteFolder, check_remote
    from ..inference.shards import formats_for
    from ..results.class_names import numbers_of
    from ..results.writers import check_drawn, writers_for
    from ..runtime import jsonl
    from ..structures.images import silence_pillow

    check_drawn(formats, drawing)
    remote = place if isinstance(place, RemoteFolder) else None
    if remote is None:
        journal.check_folder(folder, skip_existing=skip_existing, overwrite=overwrite)
    else:
        check_remote(formats, report)
    sharded = formats_for(formats, task)  # type: ignore[arg-type]
    if task is not None:
        writers_for([name for name in formats if name not in sharded], task, trust_code=True)  # type: ignore[arg-type]
    silence_pillow()
    options = ModelOptions(model, **chosen)
    thresholds = {
        "object_threshold": object_threshold,
        "overlap_threshold": overlap_threshold,
        "score_threshold": score_threshold,
        "top_k": top_k,
    }
    with where.opened(options, devices, on, ray_address) as (loaded, streamer):
        numbers_of(drawing.classes, loaded.categories)  # an unknown name fails before the first image
        described = _described(model or loaded.source, tta=tta, tile=tile, tile_overlap=tile_overlap)
        old = jsonl.remarks(folder / journal.RUN_MARK) if skip_existing else []
        for remark in (*loaded.notes, *old):
            console.note(remark)
        with console.progress("Segmenting", total) as advance:
            summary = predict_all(
                loaded,
                images,
                task,
                folder,
                formats,
                batch=batch,
                workers=workers,
                skip_existing=skip_existing,
                overwrite=overwrite,
                thresholds=thresholds,
                model=described,
                draw=drawing,
                thumbnails=thumbnails if report else 0,
                shard_size=shard_size,
                on_progress=lambda step: advance(step.message),
                trust_code=True,
                streamer=streamer,
                remote=remote,
            )
    page = written_of(folder) if report else None
    if as_json:
        _emit(summary, place.shown, page, where.stages_of(streamer))
    else:
        where.show_stages(streamer)
        _print(summary, place.shown)
        if page is not None:
            console.out(f"Report: {page}")
        ref = model or loaded.source
        console.next_steps(["m2f", "eval", "--model", ref, "--data", "DIR"], ["m2f", "export", "--model", ref])
    if summary.failed and not where.is_of_torchrun():  # it would report a crash
        raise typer.Exit(DataError.exit_code)


def _for_commercial_use(model: str | None, task: str | None) -> str:
    """Return the preset to use, and say which it is and what its licence asks."""
    from ..config import licences

    chosen = licences.check_commercial(model) if model else licences.commercial_model(task or "panoptic")
    for remark in (f"Model: {chosen.name} ({chosen.summary}).", *licences.remarks(chosen)):
        console.note(remark)
    return chosen.name


def _described(model: str, *, tta: bool, tile: int | None, tile_overlap: float) -> str:
    """Describe the model and its views of an image; an earlier run goes on only where this is the same."""
    parts = ["with test-time augmentation"] if tta else []
    parts += [f"in tiles of {tile}, overlap {tile_overlap:g}"] if tile is not None else []
    return ", ".join([model, *parts])


def _place(out: str | None, staging: Path | None, *, skip_existing: bool, overwrite: bool) -> ResultsFolder:
    from ..inference.remote import RemoteFolder
    from ..inference.results_folder import ResultsFolder
    from ..storage.uris import is_uri

    if out is not None and is_uri(out):
        return RemoteFolder(out, staging, skip_existing=skip_existing, overwrite=overwrite)
    if staging is not None:
        raise ConfigError("--staging is for an --out in a store.", hint="Leave it out, or give --out s3://….")
    return ResultsFolder(Path(out) if out else next_folder(Path("runs/predict")))


def next_folder(parent: Path) -> Path:
    """Return the first of parent/1, parent/2, … that does not exist."""
    return next(folder for n in itertools.count(1) if not (folder := parent / str(n)).exists())


def _formats(save: list[str] | None) -> list[str]:
    given, known = opt.listed(save or ["overlay"]), {**plugins.table("writers"), **plugins.table("shards")}
    if not given:
        raise ConfigError("--save names no format.", hint=f"Known: {', '.join(sorted(known))}.")
    for name in given:
        if ":" not in name:
            opt.one_of("format", name, known)
    return list(given)


def _images(source: list[str]) -> tuple[Any, int | None]:
    """Return the images and their number; None where they come as a list on stdin.

    The others are found before the model is loaded, so that a wrong path fails at once.
    """
    from ..inference.sources import expand

    stream = expand(source)
    if "-" in source:
        return stream, None
    found = list(stream)
    return found, len(found)


def _rate(summary: Summary) -> float:
    return summary.done / summary.seconds if summary.seconds else 0.0


def _emit(summary: Summary, folder: str, page: Path | None, stages: list[dict[str, Any]] | None) -> None:
    console.emit_json(
        {
            "out": folder,
            "report": page and str(page),
            "done": summary.done,
            "skipped": summary.skipped,
            "failed": [{"file": str(each.file), "error": each.message} for each in summary.failed],
            "seconds": round(summary.seconds, 3),
            "images_per_second": round(_rate(summary), 3),
            **({} if stages is None else {"stages": stages}),
        }
    )


def _print(summary: Summary, folder: str) -> None:
    parts = [f"{summary.done} done in {summary.seconds:.1f} s ({_rate(summary):.1f} images/s)"]
    parts += [f"{summary.skipped} skipped"] if summary.skipped else []
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    console.out(f"{', '.join(parts)}. Results: {folder}")
    console.show_failures([each.message for each in summary.failed], f"{folder}/predictions.json")

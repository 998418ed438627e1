"""m2f predict: pictures in, segmentations out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, plugins
from ..errors import ConfigError, unknown_name
from .trust import TrustCode

if TYPE_CHECKING:
    from ..inference.predict import PredictProgress, Summary

TASKS = ("panoptic", "instance", "semantic")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
SOME_FAILED = 3
SHOWN_FAILURES = 5


def predict(
    source: Annotated[
        list[str], typer.Argument(help="Pictures, folders (searched with sub-folders), globs, or - for paths on stdin.")
    ],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help=f"{', '.join(TASKS)}; by default what the model is for.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Preset, run folder, checkpoint, Hugging Face repository or exported file."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="What runs an exported file; by default what its name says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results go; by default runs/predict/1, 2, …")
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT,…",
            help="overlay (default), coco-panoptic, coco-instance, label-png, color-png, polygons, crops; repeatable.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, …")] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="FORMAT", help=f"Number format of the network: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Through torch.compile, what gains from it: slower to start, then faster.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read pictures, and as many that write.")] = 2,
    object_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Panoptic: least score of a segment; default: the model's own.")
    ] = None,
    overlap_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Panoptic: least visible share of a mask; default: the model's own."),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Instance: least score of an object; 0 keeps the published top 100.")
    ] = 0.5,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Instance: objects kept before the score; default: the model's own.")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Look at each picture in several sizes and mirrored; slower, a little better.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            min=32,
            metavar="N",
            help="Do pictures above N pixels in windows of N x N; each is resized to the model's test size, so a "
            "smaller N shows more detail.",
        ),
    ] = None,
    tile_overlap: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of a tile that neighbours have in common.")
    ] = 0.25,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on with an earlier run into --out: finished pictures are kept.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier run wrote to --out, and start again.")
    ] = False,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as json on stdout.")] = False,
) -> None:
    """Segment pictures.

    Exit code 3: some pictures could not be read; the others are done.
    """
    _one_of("task", task, TASKS)
    _one_of("precision", precision, PRECISIONS)
    _one_of("engine", engine, tuple(plugins.table("engines")))
    formats = _formats(save)
    folder = out or next_folder(Path("runs/predict"))
    pictures, total = _pictures(source)

    from ..inference import journal
    from ..inference.load import ModelOptions, open_model
    from ..inference.predict import predict as predict_all
    from ..results.writers import writers_for

    journal.check_folder(folder, skip_existing=skip_existing, overwrite=overwrite)
    if task is not None:
        writers_for(formats, task, trust_code=True)  # type: ignore[arg-type]
    _silence_pillow()
    options = ModelOptions(
        model,
        task=task,  # type: ignore[arg-type]
        device=device,
        precision=precision,
        engine=engine,
        trust_code=trust_code,
        compile=compile_,
        tta=tta,
        tile=tile,
        tile_overlap=tile_overlap,
    )
    with console.downloads() as fetched:
        loaded = open_model(options, progress=fetched)
    source = _described(model or loaded.source, tta=tta, tile=tile, tile_overlap=tile_overlap)
    for remark in loaded.notes:
        console.note(remark)
    thresholds = {
        "object_threshold": object_threshold,
        "overlap_threshold": overlap_threshold,
        "score_threshold": score_threshold,
        "top_k": top_k,
    }
    with console.progress("Segmenting", total) as advance:

        def show(step: PredictProgress) -> None:
            advance(step.message)

        summary = predict_all(
            loaded,
            pictures,
            task,
            folder,
            formats,
            batch=batch,
            workers=workers,
            skip_existing=skip_existing,
            overwrite=overwrite,
            thresholds=thresholds,
            model=source,
            on_progress=show,
            trust_code=True,
        )
    (_emit if as_json else _print)(summary, folder)
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


def _described(model: str, *, tta: bool, tile: int | None, tile_overlap: float) -> str:
    """The model and how it looks at pictures; an earlier run goes on only where this is the same."""
    parts = ["with test-time augmentation"] if tta else []
    parts += [f"in tiles of {tile}, overlap {tile_overlap:g}"] if tile is not None else []
    return ", ".join([model, *parts])


def next_folder(parent: Path) -> Path:
    """The first of parent/1, parent/2, … that does not exist."""
    return next(folder for n in itertools.count(1) if not (folder := parent / str(n)).exists())


def _one_of(kind: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise unknown_name(kind, value, known)


def _formats(save: list[str] | None) -> list[str]:
    given = [name.strip() for text in save or ["overlay"] for name in text.split(",") if name.strip()]
    if not given:
        raise ConfigError("--save names no format.", hint=f"Known: {', '.join(plugins.names('writers'))}.")
    for name in given:
        if ":" not in name:
            _one_of("format", name, tuple(plugins.table("writers")))
    return list(dict.fromkeys(given))


def _pictures(source: list[str]) -> tuple[Any, int | None]:
    """The pictures and their number. All are found before the model is loaded, so that a wrong path fails at once;
    only a list on stdin stays a stream."""
    from ..inference.sources import expand

    stream = expand(source)
    if "-" in source:
        return stream, None
    found = list(stream)
    return found, len(found)


def _silence_pillow() -> None:
    """Large pictures are fine here; what is too large is an error of our own."""
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _rate(summary: Summary) -> float:
    return summary.done / summary.seconds if summary.seconds else 0.0


def _emit(summary: Summary, folder: Path) -> None:
    console.emit_json(
        {
            "out": str(folder),
            "done": summary.done,
            "skipped": summary.skipped,
            "failed": [{"file": str(each.file), "error": each.message} for each in summary.failed],
            "seconds": round(summary.seconds, 3),
            "images_per_second": round(_rate(summary), 3),
        }
    )


def _print(summary: Summary, folder: Path) -> None:
    parts = [f"{summary.done} done in {summary.seconds:.1f} s ({_rate(summary):.1f} images/s)"]
    parts += [f"{summary.skipped} skipped"] if summary.skipped else []
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    console.out(f"{', '.join(parts)}. Results: {folder}")
    for each in summary.failed[:SHOWN_FAILURES]:
        console.out(f"failed: {each.message}")
    if len(summary.failed) > SHOWN_FAILURES:
        console.out(f"… and {len(summary.failed) - SHOWN_FAILURES} more, all in {folder / 'predictions.json'}")

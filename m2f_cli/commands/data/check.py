"""m2f data check: find out whether a folder of annotated images can be trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import console
from ...errors import DataError, M2FError
from ...runtime.threads import usable_cores
from .. import options as opt
from ..help_page import help_page
from .reading import PAGES, AsTraining, check_suffix, split_opener

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...data.records import DataSet
    from ...dataset_tools.check.issues import Finding
    from ...dataset_tools.check.summary import DataReport, SplitReport

MOST_WORKERS = 8  # by default
SHOWN_CLASSES = 30
REHEARSED = "tiny"  # the preset of the training that is begun where none is named


@help_page(
    "m2f data check my-images",
    "m2f data check my-images --preset small-instance --page check.html",
    most_used=("split", "page", "preset", "workers", "as_json"),
)
def check(
    folder: opt.AnnotatedFolder,
    split: opt.SplitNames = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="HTML page to write, with figures and images.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    thumbnails: opt.Thumbnails = 320,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Worker threads. By default one per core, {MOST_WORKERS} at most.", rich_help_panel=opt.SPEED
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for which to check that a run could be written there.",
            rich_help_panel=opt.ADVANCED,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 3 for warnings, too.", rich_help_panel=opt.OUTPUT)
    ] = False,
    preset: opt.ReadAsPreset = None,
    format_: opt.FormatName = None,
    task: opt.DataTask = None,
    classes: opt.Classes = None,
    ignore_index: opt.IgnoreIndex = None,
    label_map: opt.LabelMap = None,
    as_json: opt.AsJson = False,
) -> None:
    """Check every image and annotation for what would spoil a training; a training is begun for that.

    Exit code 3: training would fail.
    """
    check_suffix("--page", page, PAGES)
    open_split = split_opener(folder, preset, format_, task, classes, ignore_index, label_map)
    from ...dataset_tools.check import report as reports

    opened, findings = reports.open_splits(open_split, split or ())
    if isinstance(open_split, AsTraining):
        _require_trains(opened, open_split.settings)
        findings += [
            reports.Finding("warning", "other-task", "train", note, "Name a preset of that task to be sure.")
            for note in open_split.notes
        ]
    with console.progress("Checking images", sum(map(len, opened))) as advance:
        found = reports.report(opened, findings, workers=workers or _threads(), on_look=lambda _: advance(None))
    found = dataclasses.replace(found, findings=(*found.findings, *_rehearsed(found, opened, open_split, out)))
    if page is not None:
        from ...report.data import write_check_page

        write_check_page(found, opened, page, edge=thumbnails)
    if as_json:
        console.emit_json({"data": str(folder), "page": page and str(page), **found.to_dict()})
    else:
        _show(found, opened[0], page)
    if found.errors or (strict and found.findings):
        raise typer.Exit(DataError.exit_code)


def _rehearsed(
    found: DataReport, opened: Sequence[DataSet], open_split: Callable[[str], DataSet], out: Path | None
) -> list[Finding]:
    """Begin a training and return what stops it, except images that were found to be unusable."""
    from ...config import presets as config
    from ...dataset_tools.check.issues import Finding
    from ...training import rehearsal

    reasons: list[str] = []
    for data, split in zip(opened, found.splits, strict=True):
        if data.split != "train":
            continue
        if isinstance(open_split, AsTraining):
            settings = open_split.settings
        else:
            settings = config.load(REHEARSED).model_copy(update={"task": data.task})
        told = [problem.message for problem in split.problems]
        reasons += [why for why in rehearsal.rehearse(data, settings) if not any(known in why for known in told)]
    findings = [Finding("error", "training-stops", "train", f"Training stops: {why}", "") for why in reasons]
    if out is not None:
        try:
            rehearsal.refuse_unwritable(out)
        except M2FError as error:
            findings.append(Finding("error", "unwritable", "train", error.message, "Choose another folder with --out."))
    return findings


def _threads() -> int:
    return min(MOST_WORKERS, usable_cores())


def _require_trains(opened: Iterable[DataSet], settings: Config) -> None:
    from ...data.build_targets import require_trains

    for data in opened:
        require_trains(data.task, settings.task)


def _show(found: DataReport, data: DataSet, page: Path | None) -> None:
    """Show tables and findings."""
    from ...dataset_tools.check.summary import edge_names

    for note in dict.fromkeys(note for split in found.splits for note in split.notes):
        console.note(note)
    title = f"{data.name}: {data.format}, {data.task}, {len(data.categories)} classes"
    columns = ["split", "images", "unusable", "empty", "objects", "per image", "most", "sizes", "MB"]
    console.show_table(title, columns, map(_split_row, found.splits))
    names = [split.split for split in found.splits]
    rows = _class_rows(found.splits)
    columns = ["class", "kind", *(f"{name} {what}" for name in names for what in ("images", "objects"))]
    console.show_table("Classes", columns, rows[:SHOWN_CLASSES])
    if len(rows) > SHOWN_CLASSES:
        console.note(f"{len(rows) - SHOWN_CLASSES} more classes are in --json and on the --page.")
    edges = zip(edge_names(), *(split.object_edges for split in found.splits), strict=True)
    console.show_table("Objects by the root of their area", ["pixels", *names], edges)
    for finding in found.findings:
        console.out(f"{finding.level} ({finding.kind}, {finding.split}): {finding.message} {finding.hint}".rstrip())
    console.out("Training would fail." if found.errors else "Nothing was found that would stop training.")
    if page is not None:
        console.note(f"wrote {page}")


def _split_row(split: SplitReport) -> list[Any]:
    found = split.description
    objects = sum(found.objects)
    return [
        split.split,
        found.images,
        len(split.problems),
        split.num_empty,
        objects,
        f"{objects / max(1, found.looked_at):.1f}",
        max(found.objects, default=0),
        _span(found.sizes),
        f"{split.num_bytes / 1e6:.1f}",
    ]


def _span(sizes: Iterable[tuple[int, int]]) -> str:
    """Return the smallest and the largest size, as width x height."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    ends = dict.fromkeys(f"{width}x{height}" for height, width in (*ordered[:1], *ordered[-1:]))
    return " – ".join(ends)


def _class_rows(splits: Sequence[SplitReport]) -> list[list[Any]]:
    from ...dataset_tools.check.summary import class_rows

    return [
        [
            first.name,
            "thing" if first.isthing else "stuff",
            *(cell for each in counts for cell in ((each.pictures, each.objects) if each else ("", ""))),
        ]
        for first, counts in class_rows(splits)
    ]

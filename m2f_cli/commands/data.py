"""m2f data: what a folder of annotated pictures is, whether it can be trained on, and what it looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ConfigError, DataError, M2FError, unknown_name
from ..runtime.files import output_path
from ..runtime.threads import usable_cores
from .data_convert import convert, parse_label_map
from .data_prepare import prepare
from .data_split import split as split_command

if TYPE_CHECKING:
    from ..config.schema import Config
    from ..data.records import DataSet
    from ..dataset_tools.check.issues import Finding
    from ..dataset_tools.check.summary import DataReport, SplitReport

app = typer.Typer(no_args_is_help=True, help="Annotated pictures: prepare, check, view, convert, split.")
app.command("prepare")(prepare)

TASKS = ("panoptic", "instance", "semantic")
PAGES, SHEETS = (".html", ".htm"), (".jpg", ".jpeg", ".png", ".webp")
MOST_WORKERS = 8  # by default
SHOWN_CLASSES = 30
REHEARSED = "tiny"  # the preset of the training that is begun where none is named
WOULD_FAIL = DataError.exit_code

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of annotated pictures, of any known format.")]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Read the data as training with this preset does; excludes the options below about reading.",
    ),
]
FormatName = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Of the folder, where it cannot be recognised.")
]
Task = Annotated[
    str | None, typer.Option(metavar="TASK", help=f"{', '.join(TASKS)}; by default the richest that the data has.")
]
Classes = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="A class table instead of the data's own classes.")
]
Ignore = Annotated[int | None, typer.Option(metavar="VALUE", help="Label maps: the pixel value that counts nowhere.")]
LabelMap = Annotated[
    list[str] | None,
    typer.Option(metavar="VALUE=CLASS,…", help="Label maps: what pixel values mean; VALUE= counts nowhere."),
]


# --- check ------------------------------------------------------------------------------------------------------------


@app.command("check")
def check(
    folder: Folder,
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this split; repeatable. By default all.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with figures and pictures, too.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Threads; by default one per core, {MOST_WORKERS} at most.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check, too, that a run could be written there.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 for warnings, too.")] = False,
    preset: Preset = None,
    format_: FormatName = None,
    task: Task = None,
    classes: Classes = None,
    ignore_index: Ignore = None,
    label_map: LabelMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that was found, as JSON.")] = False,
) -> None:
    """Look at every picture and annotation, count, and find what would spoil a training; a training is begun for that.

    Exit code 3: training would fail.
    """
    _check_suffix("--page", page, PAGES)
    open_split = _reading(folder, preset, format_, task, classes, ignore_index, label_map)
    from ..dataset_tools.check import report as reports

    opened, findings = reports.open_splits(open_split, split or ())
    if isinstance(open_split, _AsTraining):
        _require_trains(opened, open_split.settings)
        findings += [
            reports.Finding("warning", "other-task", "train", note, "Name a preset of that task to be sure.")
            for note in open_split.notes
        ]
    with console.progress("Looking at pictures", sum(map(len, opened))) as advance:
        found = reports.report(opened, findings, workers=workers or _threads(), on_look=lambda _: advance(None))
    found = dataclasses.replace(found, findings=(*found.findings, *_rehearsed(found, opened, open_split, out)))
    if page is not None:
        from ..dataset_tools.check.page import write_check_page

        write_check_page(found, opened, page)
    if as_json:
        console.emit_json({"data": str(folder), "page": page and str(page), **found.to_dict()})
    else:
        _show(found, opened[0], page)
    if found.errors or (strict and found.findings):
        raise typer.Exit(WOULD_FAIL)


def _rehearsed(
    found: DataReport, opened: Sequence[DataSet], open_split: Callable[[str], DataSet], out: Path | None
) -> list[Finding]:
    """What stops a training that is begun, beside the pictures that were found to be unusable."""
    from ..config import presets as config
    from ..dataset_tools.check.issues import Finding
    from ..training import rehearsal

    reasons: list[str] = []
    for data, split in zip(opened, found.splits, strict=True):
        if data.split != "train":
            continue
        if isinstance(open_split, _AsTraining):
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
    from ..data.build_targets import require_trains

    for data in opened:
        require_trains(data.task, settings.task)


def _show(found: DataReport, data: DataSet, page: Path | None) -> None:
    """For people: tables and findings on stdout."""
    from ..dataset_tools.check.summary import edge_names

    for note in dict.fromkeys(note for split in found.splits for note in split.notes):
        console.note(note)
    title = f"{data.name}: {data.format}, {data.task}, {len(data.categories)} classes"
    columns = ["split", "pictures", "unusable", "empty", "objects", "per picture", "most", "sizes", "MB"]
    console.show_table(title, columns, map(_split_row, found.splits))
    names = [split.split for split in found.splits]
    rows = _class_rows(found.splits)
    columns = ["class", "kind", *(f"{name} {what}" for name in names for what in ("pictures", "objects"))]
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
        found.pictures,
        len(split.problems),
        split.num_empty,
        objects,
        f"{objects / max(1, found.looked_at):.1f}",
        max(found.objects, default=0),
        _span(found.sizes),
        f"{split.num_bytes / 1e6:.1f}",
    ]


def _span(sizes: Iterable[tuple[int, int]]) -> str:
    """Smallest to largest, as width x height."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    ends = dict.fromkeys(f"{width}x{height}" for height, width in (*ordered[:1], *ordered[-1:]))
    return " – ".join(ends)


def _class_rows(splits: Sequence[SplitReport]) -> list[list[Any]]:
    from ..dataset_tools.check.summary import class_rows

    return [
        [
            first.name,
            "thing" if first.isthing else "stuff",
            *(cell for each in counts for cell in ((each.pictures, each.objects) if each else ("", ""))),
        ]
        for first, counts in class_rows(splits)
    ]


# --- view -------------------------------------------------------------------------------------------------------------


@app.command("view")
def view(
    folder: Folder,
    split: Annotated[str, typer.Option(metavar="NAME", help="Of the data.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=400, metavar="N", help="How many pictures.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Which pictures, and how they are augmented.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A picture (.jpg, .png, .webp) or a page (.html); by default runs/data/view/<folder>-<split>.jpg.",
        ),
    ] = None,
    preset: Preset = None,
    format_: FormatName = None,
    task: Task = None,
    classes: Classes = None,
    ignore_index: Ignore = None,
    label_map: LabelMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file and the pictures on it as JSON.")] = False,
) -> None:
    """Show pictures with their annotations; with --preset, before and after its augmentation."""
    _check_suffix("--out", out, (*PAGES, *SHEETS))
    open_split = _reading(folder, preset, format_, task, classes, ignore_index, label_map)
    steps = _augmentation(open_split.settings if isinstance(open_split, _AsTraining) else None)
    from ..dataset_tools import preview as data_pictures
    from ..dataset_tools.check import page as data_page

    data = open_split(split)
    _refuse_own_image(out, data)
    for note in (*data.notes, *(open_split.notes if isinstance(open_split, _AsTraining) else ())):
        console.note(note)
    with console.progress("Drawing", min(count, len(data))) as advance:
        shown = []
        for each in data_pictures.views(data, steps, count=count, seed=seed, on_skip=console.warn):
            shown.append(each)
            advance(None)
    path = out or output_path(Path("runs/data/view"), f"{data.name}-{data.split}", ".jpg")
    if path.suffix.lower() in PAGES:
        data_page.write_view_page(data, shown, path)
    else:
        data_pictures.write_sheet(shown, path)
    if as_json:
        console.emit_json({"file": str(path), "split": data.split, "pictures": [each.name for each in shown]})
    else:
        console.out(str(path))


def _refuse_own_image(out: Path | None, data: DataSet) -> None:
    """What is shown is not written over an image of the data set."""
    if out is None or not out.exists():
        return
    own = (record.image for record in data.records if record.image is not None)
    if any(image.name == out.name and image.samefile(out) for image in own if image.exists()):
        raise ConfigError(f"--out {out} is an image of the data set.", hint="Choose another file.")


def _augmentation(settings: Config | None) -> list[Any]:
    if settings is None:
        return []
    if settings.train is None:
        raise ConfigError(f"The preset {settings.name} does not say how to train.", hint="Name another, or none.")
    from ..data.transforms import build_transforms

    return build_transforms(settings.train.augment, trust_code=True)


app.command("convert")(convert)
app.command("split")(split_command)


# --- reading ----------------------------------------------------------------------------------------------------------


def _reading(
    folder: Path,
    preset: str | None,
    format_: str | None,
    task: str | None,
    classes: str | None,
    ignore_index: int | None,
    label_map: list[str] | None,
) -> Callable[[str], DataSet]:
    """What opens a split: as training does, or as the options say."""
    said = {
        "format": format_,
        "task": task,
        "classes": classes,
        "ignore_index": ignore_index,
        "label_map": parse_label_map(label_map),
    }
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    if preset is None:
        from ..data.open_dataset import open_data

        return lambda split: open_data(folder, split, trust_code=True, **said)
    given = [f"--{name.replace('_', '-')}" for name, value in said.items() if value is not None]
    if given:
        raise ConfigError(
            f"--preset says how the data is read; {', '.join(given)} would say it again.", hint="Leave one of both out."
        )
    from ..config import presets as config

    return _AsTraining(config.load(preset), folder, [])


@dataclass
class _AsTraining:
    """Opens splits as training with a preset does: for the task that the data has, where it has not the preset's."""

    settings: Config
    folder: Path
    notes: list[str]

    def __call__(self, split: str) -> DataSet:
        from ..data.formats.base import NoTask
        from ..training.data import open_split, with_task_of

        try:
            return open_split(self.settings, self.folder, split)
        except NoTask as error:
            self.settings = with_task_of(self.settings, error, self.notes)
            return open_split(self.settings, self.folder, split)


def _check_suffix(option: str, path: Path | None, known: tuple[str, ...]) -> None:
    if path is not None and path.suffix.lower() not in known:
        raise ConfigError(f"{option} {path} should end in {', '.join(known[:-1])} or {known[-1]}.")

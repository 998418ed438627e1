"""m2f data view: draw images of a data set with their annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import console
from ...errors import ConfigError
from ...runtime.files import output_path
from .. import options as opt
from ..help_page import help_page
from .reading import PAGES, AsTraining, check_suffix, split_opener

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...data.records import DataSet

SHEETS = (".jpg", ".jpeg", ".png", ".webp")


@help_page(
    "m2f data view my-images",
    "m2f data view my-images --preset small-instance --out view.html",
    most_used=("split", "count", "out", "preset", "seed"),
)
def view(
    folder: opt.AnnotatedFolder,
    split: opt.SplitName = "train",
    count: Annotated[
        int, typer.Option(min=1, max=400, metavar="N", help="Number of images to show.", rich_help_panel=opt.DATA)
    ] = 16,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed for the choice of images and for their augmentation.", rich_help_panel=opt.ADVANCED
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Image (.jpg, .png, .webp) or page (.html) to write; by default runs/data/view/<folder>-<split>.jpg.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    preset: opt.ReadAsPreset = None,
    format_: opt.FormatName = None,
    task: opt.DataTask = None,
    classes: opt.Classes = None,
    ignore_index: opt.IgnoreIndex = None,
    label_map: opt.LabelMap = None,
    draw: opt.DrawnParts = None,
    palette: opt.Palette = "default",
    opacity: opt.Opacity = None,
    draw_classes: opt.DrawnClassesOnly = None,
    legend: opt.Legend = False,
    as_json: opt.AsJson = False,
) -> None:
    """Show images with their annotations; with --preset, before and after its augmentation."""
    check_suffix("--out", out, (*PAGES, *SHEETS))
    drawing = opt.draw_options(draw, palette, opacity, draw_classes, legend)
    open_split = split_opener(folder, preset, format_, task, classes, ignore_index, label_map)
    steps = _augmentation(open_split.settings if isinstance(open_split, AsTraining) else None)
    from ...dataset_tools import preview as data_images
    from ...report import data as data_page

    data = open_split(split)
    _refuse_own_image(out, data, Path(folder))
    for note in (*data.notes, *(open_split.notes if isinstance(open_split, AsTraining) else ())):
        console.note(note)
    with console.progress("Drawing", min(count, len(data))) as advance:
        shown = []
        for each in data_images.views(data, steps, count=count, seed=seed, draw=drawing, on_skip=console.warn):
            shown.append(each)
            advance(None)
    path = out or output_path(Path("runs/data/view"), f"{data.name}-{data.split}", ".jpg")
    if path.suffix.lower() in PAGES:
        data_page.write_view_page(data, shown, path)
    else:
        data_images.write_sheet(shown, path)
    if as_json:
        console.emit_json({"file": str(path), "split": data.split, "pictures": [each.name for each in shown]})
    else:
        console.out(str(path))


def _refuse_own_image(out: Path | None, data: DataSet, folder: Path) -> None:
    """Refuse to overwrite an image or a mask of any split of the data set."""
    if out is None or not out.exists():
        return
    if out.suffix.lower() in SHEETS and folder.resolve() in out.resolve().parents:
        raise ConfigError(f"--out {out} exists already in the folder of the data set.", hint="Choose another file.")
    own = (record.image for record in data.records if record.image is not None)
    if any(image.name == out.name and image.samefile(out) for image in own if image.exists()):
        raise ConfigError(f"--out {out} is an image of the data set.", hint="Choose another file.")


def _augmentation(settings: Config | None) -> list[Any]:
    if settings is None:
        return []
    if settings.train is None:
        raise ConfigError(f"The preset {settings.name} does not say how to train.", hint="Name another, or none.")
    from ...data.transforms import build_transforms

    return build_transforms(settings.train.augment, trust_code=True)

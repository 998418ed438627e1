"""The options that several commands share, each declared once, and checks of what was typed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from .. import console, plugins
from ..errors import unknown_name
from ..results.draw_options import PALETTES, PARTS, DrawOptions
from ..structures import Task
from . import completion

TASKS: tuple[str, ...] = get_args(Task)
PRECISIONS = ("fp32", "bf16", "fp16")
AUTO = "auto"

# --- the panels of a help page, in their order ------------------------------------------------------------------------

MOST_USED = "Most used"
SEGMENT = "What to segment"
DATA = "Data"
MODEL = "Model"
OUTPUT = "Output"
DRAWING = "Drawing"
SPEED = "Speed"
ADVANCED = "Advanced"
PANELS = (MOST_USED, SEGMENT, DATA, MODEL, OUTPUT, DRAWING, SPEED, ADVANCED)

# --- everywhere -------------------------------------------------------------------------------------------------------

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT)]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run code that a checkpoint or run brings. Use it only if you trust the maker.",
        rich_help_panel=ADVANCED,
    ),
]


def _quieter(wanted: bool) -> None:
    if wanted:
        console.set_level(console.QUIET)


def _louder(wanted: bool) -> None:
    if wanted:
        console.set_level(console.VERBOSE)


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print errors only, and what --json asks for.",
        callback=_quieter,
        expose_value=False,
        rich_help_panel=OUTPUT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Print versions, time and memory, and where an error comes from.",
        callback=_louder,
        expose_value=False,
        rich_help_panel=OUTPUT,
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show settings, data, parameters and estimates of time and memory; write nothing.",
        rich_help_panel=ADVANCED,
    ),
]

# --- the model --------------------------------------------------------------------------------------------------------

Model = Annotated[
    str | None,
    typer.Option(
        metavar="REF",
        help="Weights: preset, run folder, checkpoint, Hugging Face repository or exported file.",
        rich_help_panel=MODEL,
        autocompletion=completion.models,
    ),
]
Commercial = Annotated[
    bool,
    typer.Option(
        "--commercial",
        help="Only weights whose licence allows commercial use; without --model, the default for it.",
        rich_help_panel=MODEL,
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help=f"Task: {', '.join(TASKS)}; by default that of the model.",
        rich_help_panel=SEGMENT,
        autocompletion=completion.words(*TASKS),
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Engine for an exported file, such as onnx; by default from its name.",
        rich_help_panel=MODEL,
        autocompletion=completion.parts("engines"),
    ),
]
SetOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting to change, such as test.top_k=50; repeatable.",
        rich_help_panel=ADVANCED,
    ),
]

# --- the machine ------------------------------------------------------------------------------------------------------

Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on, such as auto, cpu, cuda, cuda:1 or mps.",
        rich_help_panel=SPEED,
        autocompletion=completion.words("auto", "cpu", "cuda", "mps"),
    ),
]
Devices = Annotated[
    int, typer.Option(min=1, help="Number of processes on this machine, one per GPU.", rich_help_panel=SPEED)
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ENGINE",
        help="Engine that spreads the work over many machines: ray.",
        rich_help_panel=SPEED,
        autocompletion=completion.words("ray"),
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster, such as auto; by default $RAY_ADDRESS, or this machine alone.",
        rich_help_panel=SPEED,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help=f"Number format: {', '.join(PRECISIONS)} or {AUTO}.",
        rich_help_panel=SPEED,
        autocompletion=completion.words(*PRECISIONS, AUTO),
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Use torch.compile where it helps: slower start, then faster.", rich_help_panel=SPEED
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads per process. Lower it on a shared machine.", rich_help_panel=SPEED),
]
ReaderThreads = Annotated[
    int, typer.Option(min=1, help="Threads that read images, and as many that finish results.", rich_help_panel=SPEED)
]
WorkerProcesses = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; by default up to one per core.", rich_help_panel=SPEED)
]

# --- post-processing --------------------------------------------------------------------------------------------------

ObjectThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Panoptic: lowest score of a segment; by default the model's own.", rich_help_panel=SEGMENT
    ),
]
OverlapThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Panoptic: least visible share of a mask; by default the model's own.",
        rich_help_panel=SEGMENT,
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Instance: lowest score of an object; 0 keeps the published top 100.",
        rich_help_panel=SEGMENT,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Instance: most objects of an image, before the score; by default the model's.",
        rich_help_panel=SEGMENT,
    ),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta", help="Test-time augmentation: several sizes, mirrored; slower, better.", rich_help_panel=SEGMENT
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        min=32,
        metavar="N",
        help="Edge of tiles, in pixels, into which larger images are split. Smaller tiles show more detail.",
        rich_help_panel=SEGMENT,
    ),
]
TileOverlap = Annotated[
    float,
    typer.Option(min=0.01, max=0.5, help="Share of a tile that neighbours have in common.", rich_help_panel=SEGMENT),
]

# --- the results ------------------------------------------------------------------------------------------------------


def _formats_option(*groups: str) -> Any:
    names = [name for group in groups for name in plugins.names(group)]
    return typer.Option(
        metavar="FORMAT,…",
        help=f"Formats of predictions to write: {', '.join(names)}; by default overlay in predict; repeatable.",
        rich_help_panel=OUTPUT,
        autocompletion=completion.parts(*groups),
    )


SaveFormats = Annotated[list[str] | None, _formats_option("writers")]
SaveFormatsOrShards = Annotated[list[str] | None, _formats_option("writers", "shards")]
ShardSize = Annotated[
    int, typer.Option(min=1, help="Images per shard, in formats such as parquet.", rich_help_panel=OUTPUT)
]
Staging = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of this machine for results on their way to an --out in a store; by default in the cache.",
        rich_help_panel=ADVANCED,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue a run that was stopped, exactly where it was.", rich_help_panel=OUTPUT),
]
SkipExisting = Annotated[
    bool,
    typer.Option("--skip-existing", help="Keep finished results in --out, and do the rest.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run in --out.", rich_help_panel=OUTPUT)
]

Thumbnails = Annotated[
    int,
    typer.Option(
        min=32,
        max=4096,
        metavar="PX",
        help="Longest edge of the images on the page, in pixels.",
        rich_help_panel=ADVANCED,
    ),
]

# --- drawings ---------------------------------------------------------------------------------------------------------

DrawnParts = Annotated[
    list[str] | None,
    typer.Option(
        "--draw",
        metavar="PART,…",
        help=f"Parts of an overlay: {', '.join(PARTS)}; by default {', '.join(DrawOptions().parts)}.",
        rich_help_panel=DRAWING,
        autocompletion=completion.words(*PARTS),
    ),
]
Palette = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Colours of classes: {' or '.join(PALETTES)}.",
        rich_help_panel=DRAWING,
        autocompletion=completion.words(*PALETTES),
    ),
]
Opacity = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Opacity of masks: 0 is invisible, 1 hides the image; by default higher for things than for stuff.",
        rich_help_panel=DRAWING,
    ),
]
_DRAWN_CLASSES: dict[str, Any] = {
    "metavar": "NAME,…",
    "help": "Classes to draw, by default all; repeatable.",
    "rich_help_panel": DRAWING,
}
DrawnClasses = Annotated[list[str] | None, typer.Option("--classes", "--draw-classes", **_DRAWN_CLASSES)]
# For commands whose --classes is a class table.
DrawnClassesOnly = Annotated[list[str] | None, typer.Option("--draw-classes", **_DRAWN_CLASSES)]
Legend = Annotated[
    bool,
    typer.Option("--legend", help="Add a strip with the classes below each overlay.", rich_help_panel=DRAWING),
]

# --- annotated images -------------------------------------------------------------------------------------------------

_ANNOTATED = "Folder of annotated images, or the s3:// or gs:// address of one with shards."
AnnotatedFolder = Annotated[str, typer.Argument(metavar="DIR", help=_ANNOTATED, autocompletion=completion.directories)]
SourceFolder = Annotated[str, typer.Argument(metavar="SRC", help=_ANNOTATED, autocompletion=completion.directories)]
TrainingData = Annotated[
    str | None,
    typer.Option(metavar="DIR", help=_ANNOTATED, rich_help_panel=DATA, autocompletion=completion.directories),
]
NewFolder = Annotated[Path, typer.Argument(metavar="DST", help="New folder for the result. Nothing is overwritten.")]
PublishedData = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder of annotated images; by default the run's own data, or published data in $DETECTRON2_DATASETS.",
        rich_help_panel=DATA,
        autocompletion=completion.directories,
    ),
]
SplitName = Annotated[
    str, typer.Option(metavar="NAME", help="Split to read, such as train or val.", rich_help_panel=DATA)
]
SplitNames = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="NAME", help="Split to read, by default all; repeatable.", rich_help_panel=DATA),
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Evaluate on the first N images only.", rich_help_panel=DATA)
]
ReadAsPreset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Preset whose training the data is read for. Excludes the options below about reading.",
        rich_help_panel=DATA,
        autocompletion=completion.presets,
    ),
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="Annotation format, if it is not recognised.",
        rich_help_panel=DATA,
        autocompletion=completion.parts("formats"),
    ),
]
DataTask = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help=f"Task: {', '.join(TASKS)}; by default the richest of the data.",
        rich_help_panel=DATA,
        autocompletion=completion.words(*TASKS),
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Class table to use instead of the data's own.",
        rich_help_panel=DATA,
        autocompletion=completion.class_tables,
    ),
]
IgnoreIndex = Annotated[
    int | None, typer.Option(metavar="VALUE", help="Label maps: pixel value that is ignored.", rich_help_panel=DATA)
]
LabelMap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE=CLASS,…", help="Label maps: classes of values; VALUE= ignores one.", rich_help_panel=DATA
    ),
]
Link = Annotated[
    bool, typer.Option("--link/--copy", help="Link to the images instead of copying them.", rich_help_panel=OUTPUT)
]


def one_of(kind: str, value: str | None, known: Iterable[str]) -> None:
    """Refuse a value that is given and not known.

    Raises:
        ConfigError: names the nearest known values.
    """
    if value is not None and value not in known:
        raise unknown_name(kind, value, known)


def listed(given: list[str] | None) -> tuple[str, ...]:
    """Return the names of a repeatable option whose values may hold several, between commas; each once."""
    return tuple(dict.fromkeys(name.strip() for text in given or () for name in text.split(",") if name.strip()))


def draw_options(
    parts: list[str] | None, palette: str, opacity: float | None, classes: list[str] | None, legend: bool
) -> DrawOptions:
    """Return the options of drawings that were typed.

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    usual = DrawOptions()
    chosen = usual.parts if parts is None else listed(parts)
    return DrawOptions(chosen, palette, opacity, tuple(classes or ()), legend)

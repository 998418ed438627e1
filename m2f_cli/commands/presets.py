"""m2f presets: the configurations that ship with m2f, one per row of the published tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..config import published as reference_table
from ..config.published import backbone_cell, backbone_label, decimals, label
from ..errors import ConfigError, M2FError, unknown_name
from ..runtime.files import write_text, writing_to
from ..version import __version__
from . import completion
from . import options as opt
from .help_page import help_page

if TYPE_CHECKING:
    from ..config.schema import Config

app = typer.Typer(
    no_args_is_help=True, help="Shipped configurations, one per row of the published tables.", rich_help_panel="More"
)

Dataset = Annotated[str | None, typer.Option(help="Only this data set, such as cityscapes.", rich_help_panel=opt.DATA)]
Task = Annotated[
    str | None,
    typer.Option(
        help="Only this task: panoptic, instance or semantic.",
        rich_help_panel=opt.DATA,
        autocompletion=completion.words(*opt.TASKS),
    ),
]
Backbone = Annotated[
    str | None, typer.Option(help="Only this backbone, such as swin-l or r50.", rich_help_panel=opt.DATA)
]
Method = Annotated[str | None, typer.Option(help="Only this method, such as mask2former.", rich_help_panel=opt.DATA)]
Commercial = Annotated[
    bool,
    typer.Option("--commercial", help="Only weights whose licence allows commercial use.", rich_help_panel=opt.DATA),
]
Text = Annotated[str | None, typer.Argument(metavar="FILTER", help="Only presets with this text in name or summary.")]

FORMATS = ("terminal", "markdown", "json", "csv")


@app.command("list")
@help_page(
    "m2f presets list",
    "m2f presets list --dataset cityscapes --task semantic",
    most_used=("dataset", "task", "backbone", "method"),
)
def list_presets(
    text: Text = None,
    dataset: Dataset = None,
    task: Task = None,
    backbone: Backbone = None,
    method: Method = None,
    commercial: Commercial = False,
    as_json: opt.AsJson = False,
) -> None:
    """List the presets, one a line, each with its first published figure.

    ? after a licence: read in the repository of the code, and not beside the weights themselves.
    """
    from ..config import licences

    chosen = find(text=text, dataset=dataset, task=task, backbone=backbone, method=method)
    chosen = [config for config in chosen if not commercial or licences.is_commercial(config)]
    if as_json:
        console.emit_json({"presets": [summary(config) for config in chosen]})
    else:
        columns = ["preset", "task", "backbone", "queries", "published", "licence"]
        title = "1 preset" if len(chosen) == 1 else f"{len(chosen)} presets"
        console.show_table(title, columns, [_list_row(config) for config in chosen])
        used = {source.licence for config in chosen for source in config.weights[:1]}
        for licence in sorted(used & licences.CONDITIONS.keys()) if commercial else ():
            console.note(licences.CONDITIONS[licence])


@app.command("table")
@help_page(
    "m2f presets table --dataset coco",
    "m2f presets table swin-l --format markdown",
    most_used=("dataset", "task", "backbone", "method", "format_"),
)
def show_tables(
    text: Text = None,
    dataset: Dataset = None,
    task: Task = None,
    backbone: Backbone = None,
    method: Method = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"Output: {', '.join(FORMATS)}.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion.words(*FORMATS),
        ),
    ] = "terminal",
    runs: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of results of eval, reproduce and bench --preset all, for the columns 'here'.",
            rich_help_panel=opt.DATA,
        ),
    ] = Path("runs"),
    as_json: opt.AsJson = False,
) -> None:
    """Print the reference tables, with what was measured on this machine.

    ? after a figure: not verified. * after a measured one: other images or settings than the published one.
    """
    opt.one_of("format", format_, FORMATS)
    configs = find(text=text, dataset=dataset, task=task, backbone=backbone, method=method)
    lines = reference_table.lines(configs, reference_table.measured_in(runs))
    if as_json or format_ == "json":
        console.emit_json({"rows": reference_table.document(lines)})
    elif format_ == "csv":
        console.out_text(reference_table.comma_separated(lines))
    elif format_ == "markdown":
        console.out_text(reference_table.markdown(reference_table.tables(lines)))
    else:
        for title, columns, rows in reference_table.tables(lines):
            console.show_table(title, columns, rows)


@app.command("show")
@help_page(
    "m2f presets show coco-panoptic-r50",
    "m2f presets show my-coco.yaml",
)
def show(
    name: Annotated[str, typer.Argument(help="Preset or YAML file.", autocompletion=completion.presets)],
    as_json: opt.AsJson = False,
) -> None:
    """Print a preset with everything that it inherits filled in."""
    from ..config import presets as config

    found = config.load(name)
    if as_json:
        console.emit_json({"preset": found.model_dump(mode="json")})
    else:
        console.out_text(config.dump(found))


@app.command("copy")
@help_page(
    "m2f presets copy coco-panoptic-r50 my-coco.yaml",
    "m2f presets copy small-panoptic my-presets/ --force",
)
def copy(
    name: Annotated[str, typer.Argument(help="Preset to copy.", autocompletion=completion.presets)],
    path: Annotated[Path, typer.Argument(help="File (.yaml) or folder to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file if it exists.", rich_help_panel=opt.OUTPUT)
    ] = False,
) -> None:
    """Copy a preset, with everything that it inherits filled in, into a file of your own to edit."""
    console.out(str(copy_preset(name, path, force=force)))


# --- finding ----------------------------------------------------------------------------------------------------------


def find(
    *,
    text: str | None = None,
    dataset: str | None = None,
    task: str | None = None,
    backbone: str | None = None,
    method: str | None = None,
) -> list[Config]:
    """Return the shipped presets that match every filter, by name. `backbone` is a size (swin-l) or a family (swin).

    Raises:
        ConfigError: no preset at all has that data set, task, backbone or method.
    """
    from ..config import presets as config

    presets = [config.load(name) for name in config.preset_names()]
    filters = {
        "data set": (dataset, lambda c: {c.data.dataset}),
        "task": (task, lambda c: {c.task}),
        "backbone": (backbone, lambda c: {backbone_label(c), c.model.backbone.name}),
        "method": (method, lambda c: {c.model.method}),
    }
    chosen = presets
    for kind, (value, names_of) in filters.items():
        if value is None:
            continue
        known = set().union(*map(names_of, presets))
        if value not in known:
            raise unknown_name(kind, value, known)
        chosen = [c for c in chosen if value in names_of(c)]
    words = (text or "").casefold().split()
    return [c for c in chosen if all(word in f"{c.name} {c.summary}".casefold() for word in words)]


# --- showing ----------------------------------------------------------------------------------------------------------


def summary(config: Config) -> dict[str, Any]:
    """Return what `list --json` says of a preset."""
    return {
        "name": config.name,
        "summary": config.summary,
        "method": config.model.method,
        "dataset": config.data.dataset,
        "task": config.task,
        "backbone": backbone_label(config),
        "num_queries": config.model.decoder.options.get("num_queries"),
        "weights": [source.model_dump(mode="json", exclude_none=True) for source in config.weights],
        "published": [figure.model_dump(mode="json") for figure in config.published],
    }


def _list_row(config: Config) -> list[str]:
    from ..config.licences import licence_cell

    return [
        config.name,
        config.task,
        backbone_cell(config),
        _queries(config),
        _first_figure(config),
        ", ".join(dict.fromkeys(map(licence_cell, config.weights))) or "-",
    ]


def _queries(config: Config) -> str:
    return str(config.model.decoder.options.get("num_queries", "-"))


def _first_figure(config: Config) -> str:
    if not config.published:
        return "-"
    first = config.published[0]
    value = f"{first.value:.{decimals(first.value)}f}"
    return f"{label(first.metric, first.setting)} {value}{'' if first.verified else '?'}"


# --- copying ----------------------------------------------------------------------------------------------------------


def copy_preset(name: str, path: Path, *, force: bool = False) -> Path:
    """Write a preset, with everything that it inherits, into a file that stands for itself.

    Args:
        path: the file, or a folder: the file then has the preset's name.
        force: whether an existing file may be replaced.

    Returns:
        The file. It carries no `name`: the stem of a file is the name of its preset.

    Raises:
        ConfigError: unknown preset, a file that exists (without `force`), not a YAML file, or a folder that cannot be
            written.
    """
    from ..config import presets as config

    preset = config.load(name)
    try:
        return _copied(preset, path, force)
    except ConfigError:
        raise
    except M2FError as error:
        raise ConfigError(error.message) from error


def _copied(preset: Config, path: Path, force: bool) -> Path:
    with writing_to(path):
        target = path / f"{preset.name}.yaml" if path.is_dir() else path
        exists, has_folder = target.exists(), target.parent.is_dir()
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target} should end in .yaml.", hint="That is how m2f tells a file from a preset's name.")
    if exists and not force:
        raise ConfigError(f"{target} exists already.", hint="Pass --force to overwrite it.")
    from ..config import presets as config

    header = f"# The preset {preset.name} of m2f {__version__}. The name of this one is the stem of its file.\n"
    if not has_folder:
        raise ConfigError(f"Cannot write {target}: there is no folder {target.parent}.")
    write_text(target, header + config.dump(preset, named=False))
    return target

"""m2f presets: the configurations that ship with m2f, one per row of the published tables."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__, console
from ..errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from ..config import Config, Published

app = typer.Typer(no_args_is_help=True, help="The shipped configurations: one per row of the published tables.")

Dataset = Annotated[str | None, typer.Option(help="Only this data set, such as cityscapes.")]
Task = Annotated[str | None, typer.Option(help="Only this task: panoptic, instance or semantic.")]
Backbone = Annotated[str | None, typer.Option(help="Only this backbone, such as swin-l or r50.")]
Method = Annotated[str | None, typer.Option(help="Only this method, such as mask2former.")]
Text = Annotated[str | None, typer.Argument(metavar="FILTER", help="Only presets with this text in name or summary.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_SWIN_SIZES = {(96, 6): "swin-t", (96, 18): "swin-s", (128, 18): "swin-b", (192, 18): "swin-l"}
_BACKBONE_ORDER = ("r50", "r101", "r101c", "swin-t", "swin-s", "swin-b", "swin-l")
_METRICS = {
    "pq": "PQ",
    "ap": "AP",
    "ap50": "AP50",
    "boundary_ap": "boundary AP",
    "miou": "mIoU",
    "fps_a100": "fps",
    "train_memory_mib": "train MiB",
}


@app.command("list")
def list_presets(
    text: Text = None, dataset: Dataset = None, task: Task = None, backbone: Backbone = None, method: Method = None,
    as_json: AsJson = False,
) -> None:
    """List the presets, one a line, each with its first published figure."""
    chosen = find(text=text, dataset=dataset, task=task, backbone=backbone, method=method)
    if as_json:
        console.emit_json({"presets": [summary(config) for config in chosen]})
    else:
        columns = ["preset", "task", "backbone", "queries", "published", "weights"]
        title = "1 preset" if len(chosen) == 1 else f"{len(chosen)} presets"
        console.show_table(title, columns, [_list_row(config) for config in chosen])


@app.command("table")
def show_tables(
    text: Text = None, dataset: Dataset = None, task: Task = None, backbone: Backbone = None, method: Method = None,
    as_json: AsJson = False,
) -> None:
    """Show the published figures as the tables that they come from, grouped by data set and task."""
    found = tables(find(text=text, dataset=dataset, task=task, backbone=backbone, method=method))
    if as_json:
        console.emit_json({"tables": [{"title": t, "columns": columns, "rows": rows} for t, columns, rows in found]})
        return
    for title, columns, rows in found:
        console.show_table(title, columns, rows)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="A preset, or a YAML file.")], as_json: AsJson = False) -> None:
    """Print a preset with everything that it inherits filled in."""
    from .. import config

    found = config.load(name)
    if as_json:
        console.emit_json({"preset": found.model_dump(mode="json")})
    else:
        console.out(config.dump(found))


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="A preset.")],
    path: Annotated[Path, typer.Argument(help="Where to: a .yaml file, or a folder.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Copy a preset, with everything that it inherits filled in, into a file of your own to edit."""
    console.out(str(copy_preset(name, path, force=force)))


# --- finding ----------------------------------------------------------------------------------------------------------


def find(
    *, text: str | None = None, dataset: str | None = None, task: str | None = None, backbone: str | None = None,
    method: str | None = None,
) -> list[Config]:
    """The shipped presets that match every filter, by name. `backbone` is a size (swin-l) or a family (swin).

    Raises:
        ConfigError: no preset at all has that data set, task, backbone or method.
    """
    from .. import config

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


def backbone_label(config: Config) -> str:
    """A backbone as preset names spell it: r50, swin-t; the component's name for any other."""
    name, options = config.model.backbone.name, config.model.backbone.options
    if name == "resnet":
        return f"r{options['depth']}{'c' if options['stem'] == 'deeplab' else ''}"
    if name == "swin":
        return _SWIN_SIZES.get((options["embed_dim"], options["depths"][2]), name)
    return name


# --- showing ----------------------------------------------------------------------------------------------------------


def summary(config: Config) -> dict[str, Any]:
    """What `list --json` says of a preset."""
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


def tables(configs: Iterable[Config]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) for every method × data set × task × source among the presets, as the sources print them.

    A figure that was not verified carries a question mark; "-" is a figure that the source does not give.
    """
    groups: dict[str, list[Config]] = {}
    for config in configs:
        sources = " and ".join(dict.fromkeys(figure.source for figure in config.published)) or "nothing published"
        groups.setdefault(f"{config.data.dataset} {config.task}, {config.model.method} ({sources})", []).append(config)
    return [(title, *_table(sorted(members, key=_size))) for title, members in groups.items()]


def _table(configs: list[Config]) -> tuple[list[str], list[list[str]]]:
    columns: dict[str, dict[str, Published]] = {}
    for config in configs:
        for figure in config.published:
            columns.setdefault(_column(figure), {})[config.name] = figure
    digits = {column: max(map(_decimals, found.values())) for column, found in columns.items()}
    rows = [
        [_backbone_cell(config), _queries(config)]
        + [_value(found.get(config.name), digits[column]) for column, found in columns.items()]
        + [config.name]
        for config in configs
    ]
    return ["backbone", "queries", *columns, "preset"], rows


def _size(config: Config) -> int:
    label = backbone_label(config)
    return _BACKBONE_ORDER.index(label) if label in _BACKBONE_ORDER else len(_BACKBONE_ORDER)


def _list_row(config: Config) -> list[str]:
    first = config.published[0] if config.published else None
    return [
        config.name,
        config.task,
        _backbone_cell(config),
        _queries(config),
        f"{_column(first)} {_value(first, _decimals(first))}" if first else "-",
        ", ".join(dict.fromkeys(source.licence for source in config.weights)) or "-",
    ]


def _backbone_cell(config: Config) -> str:
    label = backbone_label(config)
    in22k = str(config.model.backbone.options.get("pretrained", "")).endswith("_22k")
    return f"{label} in22k" if in22k else label


def _column(figure: Published) -> str:
    name = _METRICS.get(figure.metric, figure.metric)
    return name if figure.setting == "single scale" else f"{name} ({figure.setting})"


def _queries(config: Config) -> str:
    return str(config.model.decoder.options.get("num_queries", "-"))


def _decimals(figure: Published) -> int:
    return len(f"{figure.value:g}".partition(".")[2])


def _value(figure: Published | None, digits: int) -> str:
    return "-" if figure is None else f"{figure.value:.{digits}f}" + ("" if figure.verified else "?")


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
    from .. import config

    preset = config.load(name)
    target = path / f"{preset.name}.yaml" if path.is_dir() else path
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target} should end in .yaml.", hint="That is how m2f tells a file from a preset's name.")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already.", hint="Pass --force to overwrite it.")
    header = f"# The preset {preset.name} of m2f {__version__}. The name of this one is the stem of its file.\n"
    _write(target, header + config.dump(preset, named=False))
    return target


def _write(target: Path, text: str) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise ConfigError(f"Cannot write {target}: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)

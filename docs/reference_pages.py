"""Pages of the documentation that are generated from the code: commands, configuration, presets, files, errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from table_cells import bounds, linked, table, type_name

import m2f_cli
from m2f_cli import cli, errors, plugins
from m2f_cli.commands import help_page
from m2f_cli.config import presets, published
from m2f_cli.config.methods import methods
from m2f_cli.config.schema import Component, Config
from m2f_cli.evaluation.report import ResultsDocument
from m2f_cli.inference.journal import PredictionsDocument
from m2f_cli.results.rows import Row
from m2f_cli.training.loggers import MetricsLine

ROOT = Path(__file__).resolve().parents[1]
COPIED = {  # file of the repository → page of the site
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changes.md",
    "SECURITY.md": "development/report-a-fault.md",
    "presets/README.md": "reference/preset-files.md",
    "examples/README.md": "development/examples.md",
}


# --- the command line -------------------------------------------------------------------------------------------------


def cli_page() -> str:
    root = typer.main.get_command(cli.app)
    text = ["# Command line", "", root.help or "", ""]
    text += ["Options of `m2f` itself stand before the command, such as `m2f --threads 4 predict photo.jpg`.", ""]
    text += [*_parameters(root, "m2f"), ""]
    for path, command in _commands(root, "m2f"):
        text += [f"{'#' * (1 + len(path.split()[1:]))} {path}", "", _sentences(command.help), ""]
        text += [f"```text\n{_usage(command, path)}\n```", "", *_parameters(command, path), ""]
        if examples := help_page.page_of(command).examples:
            text += ["```text", *examples, "```", ""]
    return "\n".join(text)


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    context = typer.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"{path} {name}", command
        if hasattr(command, "list_commands"):
            yield from _commands(command, f"{path} {name}")


def _usage(command: Any, path: str) -> str:
    return " ".join([path, *command.collect_usage_pieces(typer.Context(command, info_name=path))])


def _parameters(command: Any, path: str) -> Iterator[str]:
    """Yield a table of each panel of options, in their order."""
    context = typer.Context(command, info_name=path)
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        is_argument = not parameter.opts[0].startswith("-")
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        panels.setdefault(panel, []).append((f"`{record[0]}`", record[1]))
    for name, rows in panels.items():
        yield table([name, ""], rows) + "\n"


def _sentences(text: str | None) -> str:
    """Return a help text without the marks that Typer knows."""
    return inspect.cleandoc(text or "").replace("\b", "").strip()


# --- the configuration ------------------------------------------------------------------------------------------------


def configuration_page() -> str:
    text = [
        "# Configuration",
        "",
        "Every key of a preset or of a YAML file of your own. `--set KEY=VALUE` changes one, such as "
        "`--set train.iterations=1000`; `m2f presets show NAME` prints a whole configuration, and "
        "[how files extend each other](preset-files.md#what-a-file-extends) is a page of its own. A key without a "
        "default must be given, by the file or by what it extends. Unknown keys are errors.",
        "",
        "The parts of the network and the steps of the augmentation have options of their own: see [parts](parts.md).",
        "",
    ]
    for path, node in _nodes("", Config):
        text += [f"## {path or 'Top level'}", "", linked(_first_paragraph(node)), ""]
        rows = [_field_row(f"{path}.{name}".lstrip("."), field) for name, field in node.model_fields.items()]
        text += [table(["key", "value", "default", "meaning"], rows), ""]
    return "\n".join(text)


def _nodes(path: str, node: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, node
    for name, field in node.model_fields.items():
        for inner in _classes(field.annotation):
            if inner is not Component:
                yield from _nodes(f"{path}.{name}".lstrip("."), inner)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _classes(each)


def _first_paragraph(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").replace("\n", " ")


def _field_row(path: str, field: FieldInfo) -> list[str]:
    default = "" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
    return [
        f"`{path}`",
        type_name(field.annotation) + bounds(field.metadata),
        default,
        linked(field.description or ""),
    ]


def _yaml(value: Any) -> str:
    return {None: "null", True: "true", False: "false", (): "[]", "": '""'}.get(value, str(value))


# --- the parts, the presets, the names of Python ----------------------------------------------------------------------

GROUPS = {
    "backbones": "Backbones (`model.backbone`)",
    "pixel_decoders": "Pixel decoders (`model.pixel_decoder`)",
    "decoders": "Decoders (`model.decoder`)",
    "transforms": "Steps of the augmentation (`train.augment`)",
    "metrics": "Metrics (`m2f eval --metric`)",
}


def parts_page() -> str:
    text = [
        "# Parts",
        "",
        "Names that a configuration or an option may use, and the options of each. `num_classes`, `channels` and "
        "`in_dim` come from the data and the parts before, and are never given. "
        "[A part of your own](../development/adding.md) is a file and a line.",
        "",
    ]
    for group, title in GROUPS.items():
        text += [f"## {title}", ""]
        for name, target in plugins.BUILT_IN[group].items():
            text += [f"::: {target.replace(':', '.')}", *_options(heading=name, toc_label=name, members="false"), ""]
    return "\n".join(text)


def _options(**options: str) -> Iterator[str]:
    yield "    options:"
    for key, value in options.items():
        yield f"      {key}: {value}" if key == "members" else f"      {key}: {value!r}"
    yield "      heading_level: 3"


COSTS = ("Mem (GiB)", "Mem (MiB)", "fps")


def model_zoo_page() -> str:
    configs = [presets.load(name) for name in presets.preset_names()]
    lines = published.lines([config for config in configs if config.published])
    text = [
        "# Model zoo",
        "",
        "Every published row with its figures, in percent. These are **figures of the publications**, not measured "
        "here; `m2f reproduce PRESET` measures one. A question mark: nobody could check the figure. "
        "`m2f presets table` adds crop, schedule, devices, memory and speed, and what was measured on your machine.",
        "",
        "[Commercial use](../guides/commercial-use.md) says which weights may be used for what.",
        "",
        '<div class="zoo" markdown>',
        "",
        *(_zoo_table(*each) for each in published.tables(lines)),
        "</div>",
        "",
        "## Other presets",
        "",
        "Recipes without published figures, and small networks for data and machines of your own.",
        "",
        table(
            ["preset", "task", "what it is"],
            [[f"`{c.name}`", c.task, c.summary] for c in configs if not c.published],
        ),
    ]
    return "\n".join(text)


def _zoo_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a section with a table of presets and figures, without the columns about their training."""
    kept = [i for i, name in enumerate(columns) if name not in ("Crop", "Schedule", "Device", "Preset", *COSTS)]
    at = columns.index("Preset")
    body = [[f"`{row[at]}`", *(row[i] for i in kept)] for row in rows]
    return f"## {title}\n\n{table(['Preset', *(columns[i] for i in kept)], body)}\n"


def licences_table() -> str:
    """Return a table of the licences of released weights, for the page about commercial use."""
    files: dict[tuple[str, str, str], dict[str, int]] = {}
    for config in map(presets.load, presets.preset_names()):
        for source in config.weights:
            authors = "OpenMMLab" if source.format == "openmmlab" else "the method's authors"
            where = "Hugging Face (unverified)" if source.hub else authors
            counts = files.setdefault((methods()[config.model.method].title, where, source.licence), {})
            counts[config.data.dataset] = counts.get(config.data.dataset, 0) + 1
    listed = {key: ", ".join(f"{name} ({count})" for name, count in counts.items()) for key, counts in files.items()}
    head = ["weights of", "released by", "licence", "data sets (files)"]
    return table(head, [[*key, names] for key, names in sorted(listed.items())])


def api_page() -> str:
    """Return the page of mkdocstrings with every public name, in the order of docs/reference/api.md."""
    listed = re.findall(r"^(## .+)$|^\| `(\w+)` \|", (ROOT / "docs" / "reference" / "api.md").read_text("utf-8"), re.M)
    text = ["# Python API in detail", "", "The names of the [overview](api.md), from their docstrings.", ""]
    for heading, name in listed:
        thing = getattr(m2f_cli, name, None) if name else None
        if heading and heading != "## Version":
            text += [heading, ""]
        elif thing is not None and hasattr(thing, "__module__"):
            text += [
                f"::: {thing.__module__}.{thing.__qualname__}",
                *_options(heading=f"m2f.{name}", toc_label=name),
                "",
            ]
    return "\n".join(text)


# --- files, errors ----------------------------------------------------------------------------------------------------

DOCUMENTS = {
    "results.json": (ResultsDocument, "What `m2f eval` writes: figures, and how they were measured."),
    "predictions.json": (PredictionsDocument, "What `m2f predict` writes beside the files of `--save`."),
    "parquet/*.parquet": (Row, "What `m2f predict --save parquet` writes: one row for each image."),
    "metrics.jsonl": (MetricsLine, "A JSON object a line, appended while a run is trained."),
}


def files_page() -> str:
    text = ["# Files of results", "", "JSON is in UTF-8, and NaN is written as `null`.", ""]
    outcome = "[TrainOutcome](api-details.md#m2f_cli.training.run.TrainOutcome)"
    text += [f"A training writes another `results.json`: `schema_version` and the attributes of {outcome}.", ""]
    for name, (document, purpose) in DOCUMENTS.items():
        text += [f"## {name}", "", purpose, ""]
        for kind in _records(document):
            hints = get_type_hints(kind, include_extras=True)
            if kind is not document:
                text += [f"### {kind.__name__}", ""]
            text += [_first_paragraph(kind), "", table(["key", "value", "meaning"], map(_hint_row, hints.items())), ""]
    return "\n".join(text)


def _records(document: type) -> list[type]:
    """Return a typed dictionary and those that its values hold."""
    found = [document]
    for hint in get_type_hints(document).values():
        for each in (hint, *get_args(hint), *(inner for arg in get_args(hint) for inner in get_args(arg))):
            if _is_record(each) and each not in found:
                found += [kind for kind in _records(each) if kind not in found]
    return found


def _is_record(thing: Any) -> bool:
    return isinstance(thing, type) and hasattr(thing, "__required_keys__")


def _hint_row(item: tuple[str, Any]) -> list[str]:
    key, hint = item
    arguments = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kind = arguments[0]
    is_optional = str(get_origin(kind)).endswith("NotRequired")
    inner = get_args(kind)[0] if is_optional else kind
    note = next((each for each in arguments[1:] if isinstance(each, str)), "")
    return [f"`{key}`", _record_name(inner), note + (" Not always there." if is_optional else "")]


def _record_name(kind: Any) -> str:
    if _is_record(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if get_origin(kind) is list and _is_record(get_args(kind)[0]):
        return f"list of {_record_name(get_args(kind)[0])}"
    return type_name(kind)


def errors_page() -> str:
    kinds = [errors.M2FError, *_subclasses(errors.M2FError)]
    rows = [[f"`{kind.__name__}`", str(kind.exit_code), _first_paragraph(kind).split(" Args:")[0]] for kind in kinds]
    codes = [
        ["0", "Everything was done."],
        [
            "1",
            "Anything else; `m2f doctor`: something is missing; `m2f reproduce`: a row failed.",
        ],
        ["2", "An option, an argument, a preset or a key makes no sense. Nothing was begun."],
        ["3", "Data that cannot be used. `predict` and `eval`: some images failed; the others are done."],
        ["4", "Weights that are missing, unsafe, or do not fit."],
        ["5", "An exported file is not the model, or cannot be written. There is no file."],
        [str(cli.INTERRUPTED), "Ctrl-C. A training has saved its last finished step."],
    ]
    return "\n".join(
        [
            "# Errors and exit codes",
            "",
            "An error is one line on stderr: what is wrong, with the file and the value, and what to do. Set "
            "`M2F_DEBUG=1` for the traceback. [It does not work](../guides/troubleshooting.md) has the usual ones.",
            "",
            table(["exit code", "meaning"], codes),
            "",
            "## In Python",
            "",
            "All are subclasses of `m2f.M2FError`, with the attributes `message`, `hint` and `exit_code`.",
            "",
            table(["class", "exit code", "raised for"], rows),
        ]
    )


def _subclasses(kind: type) -> Iterator[Any]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from _subclasses(each)


def _copied(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "examples/README.md":
        for program in sorted((ROOT / "examples").glob("*.py")):
            text += f"\n## {program.name}\n\n```python\n{program.read_text(encoding='utf-8')}```\n"
    return text


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/configuration.md": configuration_page,
    "reference/parts.md": parts_page,
    "reference/model-zoo.md": model_zoo_page,
    "reference/api-details.md": api_page,
    "reference/files.md": files_page,
    "reference/errors.md": errors_page,
    **{page: lambda name=name: _copied(name) for name, page in COPIED.items()},
}

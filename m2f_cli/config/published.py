"""Make the published tables from the presets, with figures that were measured on this machine beside them.

Measured figures come from folders of runs. Figures of quality count only where the weights are the released ones of
the row.

    RUNS/eval/*/results.json, RUNS/reproduce/*/*/results.json    figures, as `evaluation.report` lays them out
    RUNS/bench/*.json, RUNS/reproduce/*/row.json                 speed, memory: one json object a file, one or both of
        {"model": {"name": "cityscapes-swin-l"}, "device": "NVIDIA H200", "images_per_second": 12.3,
         "train_memory_gib": 15.8}

Nothing heavy is imported here, so that the table appears at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..runtime import documents
from .methods import methods

if TYPE_CHECKING:
    from .schema import Config, Published

SINGLE_SCALE, MULTI_SCALE = "single scale", "multi-scale + flip"
BASELINES = {"per_pixel": "PerPixelBaseline", "per_pixel_plus": "PerPixelBaseline+"}
BACKBONES = ("r50", "r101", "r101c", "swin-t", "swin-s", "swin-b", "swin-l")  # in the order of the tables
NAMES = {
    "pq": "PQ",
    "ap": "AP",
    "ap50": "AP50",
    "boundary_ap": "boundary AP",
    "box_ap": "box AP",
    "miou": "mIoU",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ things",
    "pq_stuff": "PQ stuff",
}
MEMORY, SPEED = "train_memory_", "fps_"  # prefixes of figures that do not measure quality
MIB_PER = {"train_memory_mib": 1, "train_memory_gib": 1024}
COSTS = ("images_per_second", "train_memory_gib")  # figures that are read from a benchmark
_LARGEST = 1e15  # of a figure or a cost; NaN and infinity are none either
_ALWAYS = ("Method", "Backbone", "Schedule", "Preset")  # columns that stay, even if all their cells are empty


@dataclass(frozen=True)
class Figure:
    """A figure of quality, in percent.

    Attributes:
        metric: name of the figure, such as pq.
        setting: `SINGLE_SCALE`, `MULTI_SCALE` or another way to test.
        published: the figure in the source.
        digits: decimals that the source prints.
        verified: False where the figure could not be confirmed.
        measured: the figure on this machine; None where it was not measured.
        comparable: True if all images of the published split were scored in the published setting.
    """

    metric: str
    setting: str
    published: float
    digits: int
    verified: bool
    measured: float | None = None
    comparable: bool = False

    @property
    def label(self) -> str:
        return label(self.metric, self.setting)


@dataclass(frozen=True)
class Line:
    """A row of a table. None: not published, or not measured.

    Attributes:
        preset: name of the preset.
        backbone: label of the backbone, see `backbone_cell`.
        crop: height x width of the crop in training.
        iterations: optimiser steps.
        batch: images per optimiser step.
        memory: published GiB of a GPU in training.
        fps: published images per second.
        device: machine of the published training.
        source: table that the figures stand in.
        status: "published", or "unverified" if a figure of quality is unverified.
        figures: figures of quality.
        measured_memory: GiB in training on this machine.
        measured_fps: images per second on this machine.
        measured_on: device of the measurements.
    """

    preset: str
    method: str
    dataset: str
    task: str
    backbone: str
    crop: str | None
    iterations: int | None
    batch: int | None
    memory: float | None
    fps: float | None
    device: str | None
    source: str
    status: str
    figures: tuple[Figure, ...] = ()
    measured_memory: float | None = None
    measured_fps: float | None = None
    measured_on: str | None = None


@dataclass(frozen=True)
class MeasuredRuns:
    """Figures from folders of runs.

    Attributes:
        figures: (preset, metric, setting) to (value, comparable).
        costs: preset to {"images_per_second" | "train_memory_gib": (value, device)}.
    """

    figures: Mapping[tuple[str, str, str], tuple[float, bool]] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, tuple[float, str]]] = field(default_factory=dict)


def lines(configs: Iterable[Config], measured: MeasuredRuns | None = None) -> list[Line]:
    """Return the rows of all presets that have published figures."""
    return [_line(config, measured or MeasuredRuns()) for config in configs if config.published]


def _line(config: Config, measured: MeasuredRuns) -> Line:
    train = config.train
    quality = [each for each in config.published if not each.metric.startswith((MEMORY, SPEED))]
    memory = [each.value * MIB_PER[each.metric] / 1024 for each in config.published if each.metric in MIB_PER]
    fps = [each.value for each in config.published if each.metric.startswith(SPEED)]
    cost = measured.costs.get(config.name, {})
    values = {name: value for name, (value, _) in cost.items()}
    return Line(
        preset=config.name,
        method=method_label(config),
        dataset=config.data.dataset,
        task=config.task,
        backbone=backbone_cell(config),
        crop=crop_of(config),
        iterations=train.iterations if train else None,
        batch=train.batch if train else None,
        memory=memory[0] if memory else None,
        fps=fps[0] if fps else None,
        device=(train.hardware if train else "") or None,
        source=config.published[0].source,
        status="published" if all(each.verified for each in quality) else "unverified",
        figures=tuple(_figure(each, config.name, measured) for each in quality),
        measured_memory=values.get("train_memory_gib"),
        measured_fps=values.get("images_per_second"),
        measured_on=_where(cost),
    )


def _where(cost: Mapping[str, tuple[float, str]]) -> str | None:
    """Return the device of the measurements, or both devices if speed and memory were measured on different ones."""
    short = {"images_per_second": "fps", "train_memory_gib": "Mem"}
    devices = {device for _, device in cost.values()}
    if len(devices) < 2:
        return next(iter(devices), None)
    return "; ".join(f"{short[name]}: {device}" for name, (_, device) in cost.items())


def _figure(each: Published, preset: str, measured: MeasuredRuns) -> Figure:
    value, comparable = measured.figures.get((preset, each.metric, each.setting), (None, False))
    return Figure(each.metric, each.setting, each.value, decimals(each.value), each.verified, value, comparable)


# --- how parts are called ---------------------------------------------------------------------------------------------


def label(metric: str, setting: str = SINGLE_SCALE) -> str:
    """Return the heading of a figure's column."""
    name = NAMES.get(metric, metric)
    short = {SINGLE_SCALE: "", MULTI_SCALE: " ms+flip"}
    return name + short.get(setting, f" ({setting})")


def method_label(config: Config) -> str:
    return BASELINES.get(config.model.decoder.name) or methods()[config.model.method].title


def backbone_label(config: Config) -> str:
    """Return the backbone of a shipped preset as preset names spell it, such as swin-t.

    That is the file in backbones/ that the preset extends. One that extends none has the depth of its ResNet, such as
    r18, or the name of the component.
    """
    from . import presets  # for its cost: it imports pydantic

    backbone = config.model.backbone
    depth = f"r{backbone.options['depth']}" if backbone.name == "resnet" else None
    return presets.backbone_of(config.name) or depth or backbone.name


def backbone_cell(config: Config) -> str:
    in22k = str(config.model.backbone.options.get("pretrained", "")).endswith("_22k")
    return f"{backbone_label(config)} in22k" if in22k else backbone_label(config)


def crop_of(config: Config) -> str | None:
    """Return height x width of the crop in training, or None if training sees the whole image, or crops only some."""
    for step in config.train.augment if config.train else ():
        options = step.options
        if step.name == "crop":
            return f"{options['height']}x{options['width']}"
        if step.name == "fixed_crop":
            return f"{options['size']}x{options['size']}"
    return None


def decimals(value: float) -> int:
    """Return the decimals of a published figure, at least one. YAML drops a last zero."""
    return max(1, len(f"{value:g}".partition(".")[2]))


# --- as tables --------------------------------------------------------------------------------------------------------


def tables(rows: Iterable[Line]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return (title, columns, cells) for every data set and task, with rows by method, source and backbone.

    A question mark follows an unverified figure. A star follows a figure that was measured on other images or in
    another setting than the published one. "-" means unknown, and columns of "-" alone are left out.
    """
    groups: dict[str, list[Line]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault(f"{row.dataset} {row.task}", []).append(row)
    return [(title, *_table(members)) for title, members in sorted(groups.items())]


def _order(row: Line) -> tuple[int, str, int, str]:
    titles = [*(method.title for method in methods().values()), *BASELINES.values()]
    size = row.backbone.partition(" ")[0]
    rank = BACKBONES.index(size) if size in BACKBONES else len(BACKBONES)
    return titles.index(row.method), row.source, rank, row.preset


def _table(rows: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    digits: dict[tuple[str, ...], int] = {}  # one published table prints all rows of a column alike
    for row in rows:
        for each in row.figures:
            key = row.source, row.method, each.label
            digits[key] = max(digits.get(key, 0), each.digits)
    cells = [_cells(row, digits) for row in rows]
    columns = [*dict.fromkeys(name for row_cells in cells for name in row_cells if name != "Preset"), "Preset"]
    shown = [name for name in columns if name in _ALWAYS or any(each.get(name, "-") != "-" for each in cells)]
    return shown, [[each.get(name, "-") for name in shown] for each in cells]


def _cells(row: Line, digits: Mapping[tuple[str, ...], int]) -> dict[str, str]:
    cells = {
        "Method": row.method,
        "Backbone": row.backbone,
        "Crop": row.crop or "-",
        "Schedule": f"{row.iterations / 1000:g}k" if row.iterations else "-",
        "Mem (GiB)": _number(row.memory, 2),
        "fps": _number(row.fps, 2),
        "Device": row.device or "-",
    }
    for each in row.figures:
        number = _number(each.published, digits[row.source, row.method, each.label])
        cells[each.label] = number + ("" if each.verified else "?")
    for each in row.figures:
        cells[f"{each.label} here"] = _number(each.measured, 2) + _star(each)
    cells |= {"Mem here": _number(row.measured_memory, 2), "fps here": _number(row.measured_fps, 2)}
    return {**cells, "on": row.measured_on or "-", "Preset": row.preset}


def _star(figure: Figure) -> str:
    return "*" if figure.measured is not None and not figure.comparable else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(sections: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """Return tables as Markdown, each with a heading."""
    parts = []
    for title, columns, rows in sections:
        head = [f"### {title}", "", _bars(columns), _bars(["---"] * len(columns))]
        parts.append("\n".join([*head, *(_bars(row) for row in rows)]))
    return "\n\n".join(parts)


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def comma_separated(rows: Iterable[Line]) -> str:
    """Return all rows as one CSV table, with a column per figure and setting, published and measured."""
    trees = [_flat(row) for row in sorted(rows, key=lambda row: (row.dataset, row.task, *_order(row)))]
    columns = list(dict.fromkeys(key for tree in trees for key in tree))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(trees)
    return text.getvalue().rstrip("\n")


def _flat(row: Line) -> dict[str, Any]:
    tree = {key: value for key, value in asdict(row).items() if key != "figures"}
    for each in row.figures:
        tree |= {each.label: each.published, f"{each.label} here": each.measured}
    return tree


def document(rows: Iterable[Line]) -> list[dict[str, Any]]:
    """Return all rows as plain values for JSON."""
    return [asdict(row) for row in sorted(rows, key=lambda row: (row.dataset, row.task, *_order(row)))]


# --- what was measured ------------------------------------------------------------------------------------------------


def measured_in(runs: Path) -> MeasuredRuns:
    """Read the figures of released weights from evaluations and benchmarks below a folder of runs.

    Of several figures, the latest that is comparable with the published one counts.

    Raises:
        DataError: a file is damaged.
    """
    figures: dict[tuple[str, str, str], tuple[float, bool]] = {}
    for tree in read_trees(runs, "eval/*/results.json", "reproduce/*/*/results.json"):
        for key, value in _figures_of(tree):
            if value[1] or not figures.get(key, (0.0, False))[1]:
                figures[key] = value
    costs: dict[str, dict[str, tuple[float, str]]] = {}
    for tree in read_trees(runs, "bench/*.json", "reproduce/*/row.json"):
        measured = {key: (tree[key], str(tree.get("device"))) for key in COSTS if tree.get(key) is not None}
        if measured:
            costs.setdefault(str(tree.get("model", {}).get("name")), {}).update(measured)
    return MeasuredRuns(figures, costs)


def read_trees(runs: Path, *patterns: str) -> Iterator[dict[str, Any]]:
    """Yield the results below a folder, the oldest first.

    Raises:
        DataError: a file is no JSON, or no result.
    """
    paths = [path for pattern in patterns for path in runs.glob(pattern) if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path)):
        try:
            tree = documents.read_json(path)
        except DataError as error:
            raise DataError(f"{path} is damaged: {error.message}", hint="Delete it, or measure again.") from error
        if not isinstance(tree, dict):
            continue
        if not _is_result(tree):
            raise DataError(f"{path} is damaged: it is no result of m2f.", hint="Delete it, or measure again.")
        yield tree


def _is_result(tree: Mapping[str, Any]) -> bool:
    """Return True if the parts of a result that this module reads have the right types."""
    model, settings, published = tree.get("model", {}), tree.get("settings", {}), tree.get("published", [])
    if not (isinstance(model, dict) and isinstance(settings, dict) and isinstance(published, list)):
        return False
    texts = [model.get("name", ""), model.get("source", "")]
    numbers = [tree.get(key) for key in COSTS]
    for each in published:
        if not isinstance(each, dict) or not {"comparable", "measured", "metric", "setting"} <= each.keys():
            return False
        texts += [each.get("metric"), each.get("setting")]
        numbers.append(each.get("measured"))
    is_number = (value is None or (isinstance(value, int | float) and abs(value) < _LARGEST) for value in numbers)
    return all(isinstance(text, str | None) for text in texts) and all(is_number)


def _figures_of(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], tuple[float, bool]]]:
    name, source = tree.get("model", {}).get("name"), str(tree.get("model", {}).get("source"))
    if not source.startswith(f"{name} ("):  # not the released weights
        return
    augmented = bool(tree.get("settings", {}).get("tta"))
    for each in tree.get("published", ()):
        if (each["setting"] != SINGLE_SCALE) == augmented:
            yield (name, each["metric"], each["setting"]), (each["measured"], each["comparable"])

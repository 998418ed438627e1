"""The reference tables again, made from the presets, with what was measured on this machine beside the published.

Measured values come from the folders of runs; figures of quality only where the weights are the released ones of the
row:

    RUNS/eval/*/results.json, RUNS/reproduce/*/*/results.json    figures, as `eval_results` lays them out
    RUNS/bench/*.json, RUNS/reproduce/*/row.json                 speed, memory: one json object a file, one or both of
        {"model": {"name": "cityscapes-swin-l"}, "device": "NVIDIA H200", "images_per_second": 12.3,
         "train_memory_gib": 15.8}

Nothing heavy is imported here: the table is there at once.
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

if TYPE_CHECKING:
    from .schema import Config, Published

SINGLE_SCALE, MULTI_SCALE = "single scale", "multi-scale + flip"
METHODS = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "mpformer": "MP-Former"}
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
MEMORY, SPEED = "train_memory_", "fps_"  # how figures begin that say no quality
MIB_PER = {"train_memory_mib": 1, "train_memory_gib": 1024}
COSTS = ("images_per_second", "train_memory_gib")  # what is read of a benchmark
_ALWAYS = ("Method", "Backbone", "Schedule", "Preset")  # columns that stay where nobody has anything to say


@dataclass(frozen=True)
class Figure:
    """One figure of quality, in percent.

    digits: behind the point, as the source prints them.
    verified: False where the figure could not be confirmed.
    measured: on this machine; None: not yet.
    comparable: whether all pictures of the published split were scored in the published setting.
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
    """One row of a table. Memory in GiB for a GPU in training, speed in pictures per second.

    device: what the published run was trained on. status: "published", or "unverified" where a figure is.
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
    """What the folders of runs say: (preset, metric, setting) → (value, comparable); preset → cost.

    A cost is a mapping of what was measured of images_per_second and train_memory_gib to (value, device).
    """

    figures: Mapping[tuple[str, str, str], tuple[float, bool]] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, tuple[float, str]]] = field(default_factory=dict)


def lines(configs: Iterable[Config], measured: MeasuredRuns | None = None) -> list[Line]:
    """The rows of all presets that stand for a published one."""
    return [_line(config, measured or MeasuredRuns()) for config in configs if config.published]


def _line(config: Config, measured: MeasuredRuns) -> Line:
    train = config.train
    quality = [each for each in config.published if not each.metric.startswith((MEMORY, SPEED))]
    memory = [each.value * MIB_PER[each.metric] / 1024 for each in config.published if each.metric in MIB_PER]
    fps = [each.value for each in config.published if each.metric.startswith(SPEED)]
    cost = measured.costs.get(config.name, {})
    return Line(
        config.name,
        method_label(config),
        config.data.dataset,
        config.task,
        backbone_cell(config),
        crop_of(config),
        train and train.iterations,
        train and train.batch,
        memory[0] if memory else None,
        fps[0] if fps else None,
        (train and train.hardware) or None,
        config.published[0].source,
        "published" if all(each.verified for each in quality) else "unverified",
        tuple(_figure(each, config.name, measured) for each in quality),
        *(cost.get(name, (None, None))[0] for name in ("train_memory_gib", "images_per_second")),
        _where(cost),
    )


def _where(cost: Mapping[str, tuple[float, str]]) -> str | None:
    """The device of what was measured; where speed and memory are of different ones, both."""
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
    """The head of a figure's column."""
    name = NAMES.get(metric, metric)
    short = {SINGLE_SCALE: "", MULTI_SCALE: " ms+flip"}
    return name + short.get(setting, f" ({setting})")


def method_label(config: Config) -> str:
    return BASELINES.get(config.model.decoder.name) or METHODS[config.model.method]


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
    """Height x width of the window that training sees; None: the whole picture, or sometimes a window."""
    for step in config.train.augment if config.train else ():
        options = step.options
        if step.name == "crop":
            return f"{options['height']}x{options['width']}"
        if step.name == "fixed_crop":
            return f"{options['size']}x{options['size']}"
    return None


def decimals(value: float) -> int:
    """Digits behind the point with which a figure was published. YAML drops a last zero; no table prints fewer than
    one."""
    return max(1, len(f"{value:g}".partition(".")[2]))


# --- as tables --------------------------------------------------------------------------------------------------------


def tables(rows: Iterable[Line]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, cells) for every data set × task: rows by method, source and size of the backbone.

    A question mark follows what nobody verified, a star what was measured on other pictures or settings than the
    published figure. "-" is what nobody says; columns of nothing else are left out.
    """
    groups: dict[str, list[Line]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault(f"{row.dataset} {row.task}", []).append(row)
    return [(title, *_table(members)) for title, members in sorted(groups.items())]


def _order(row: Line) -> tuple[int, str, int, str]:
    methods = [*METHODS.values(), *BASELINES.values()]
    size = row.backbone.partition(" ")[0]
    rank = BACKBONES.index(size) if size in BACKBONES else len(BACKBONES)
    return methods.index(row.method), row.source, rank, row.preset


def _table(rows: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    digits: dict[tuple[str, ...], int] = {}  # one published table prints all rows of a column alike
    for row in rows:
        for each in row.figures:
            key = row.source, row.method, each.label
            digits[key] = max(digits.get(key, 0), each.digits)
    cells = [_cells(row, digits) for row in rows]
    columns = [*dict.fromkeys(name for found in cells for name in found if name != "Preset"), "Preset"]
    shown = [name for name in columns if name in _ALWAYS or any(found.get(name, "-") != "-" for found in cells)]
    return shown, [[found.get(name, "-") for name in shown] for found in cells]


def _cells(row: Line, digits: Mapping[tuple[str, ...], int]) -> dict[str, str]:
    found = {
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
        found[each.label] = number + ("" if each.verified else "?")
    for each in row.figures:
        found[f"{each.label} here"] = _number(each.measured, 2) + _star(each)
    found |= {"Mem here": _number(row.measured_memory, 2), "fps here": _number(row.measured_fps, 2)}
    return {**found, "on": row.measured_on or "-", "Preset": row.preset}


def _star(figure: Figure) -> str:
    return "*" if figure.measured is not None and not figure.comparable else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(found: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """Tables as Markdown, a heading above each."""
    parts = []
    for title, columns, rows in found:
        head = [f"### {title}", "", _bars(columns), _bars(["---"] * len(columns))]
        parts.append("\n".join([*head, *(_bars(row) for row in rows)]))
    return "\n\n".join(parts)


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def comma_separated(rows: Iterable[Line]) -> str:
    """All rows as one CSV table, values as they are: a column per figure and setting, and one for what was measured."""
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
    """All rows as plain values, for json."""
    return [asdict(row) for row in sorted(rows, key=lambda row: (row.dataset, row.task, *_order(row)))]


# --- what was measured ------------------------------------------------------------------------------------------------


def measured_in(runs: Path) -> MeasuredRuns:
    """What evaluations and benchmarks below a folder of runs say of released weights. Of several, the latest counts
    that is comparable with the published figure.

    Raises:
        DataError: a file that is no json.
    """
    figures: dict[tuple[str, str, str], tuple[float, bool]] = {}
    for tree in read_trees(runs, "eval/*/results.json", "reproduce/*/*/results.json"):
        for key, value in _figures_of(tree):
            if value[1] or not figures.get(key, (0.0, False))[1]:
                figures[key] = value
    costs: dict[str, dict[str, tuple[float, str]]] = {}
    for tree in read_trees(runs, "bench/*.json", "reproduce/*/row.json"):
        found = {key: (tree[key], str(tree.get("device"))) for key in COSTS if tree.get(key) is not None}
        if found:
            costs.setdefault(str(tree.get("model", {}).get("name")), {}).update(found)
    return MeasuredRuns(figures, costs)


def read_trees(runs: Path, *patterns: str) -> Iterator[dict[str, Any]]:
    """The results below a folder, the oldest first.

    Raises:
        DataError: a file that is no json, or that holds other things than results.
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
    """Whether what is read of a result here has the form that it should have."""
    model, settings, published = tree.get("model", {}), tree.get("settings", {}), tree.get("published", [])
    if not (isinstance(model, dict) and isinstance(settings, dict) and isinstance(published, list)):
        return False
    texts = [model.get("name", ""), model.get("source", "")]
    numbers = [tree.get(key) for key in COSTS]
    for each in published:
        if not isinstance(each, dict) or "comparable" not in each:
            return False
        texts += [each.get("metric"), each.get("setting")]
        numbers.append(each.get("measured"))
    is_number = (isinstance(value, int | float | None) for value in numbers)
    return all(isinstance(text, str | None) for text in texts) and all(is_number)


def _figures_of(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], tuple[float, bool]]]:
    name, source = tree.get("model", {}).get("name"), str(tree.get("model", {}).get("source"))
    if not source.startswith(f"{name} ("):  # other weights, tested as the preset is
        return
    augmented = bool(tree.get("settings", {}).get("tta"))
    for each in tree.get("published", ()):
        if (each["setting"] != SINGLE_SCALE) == augmented:
            yield (name, each["metric"], each["setting"]), (each["measured"], each["comparable"])

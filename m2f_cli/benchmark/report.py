"""Results of benchmarks as files and rows for people, and a whole table of presets measured one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import presets as configuration
from ..config.published import read_trees
from ..config.schema import Config
from ..errors import ConfigError, M2FError
from ..results.writers import write_image, write_json
from ..runtime.devices import choose_device
from ..runtime.files import safe_name
from .captions import allocators, circumstances, size_of
from .case import Case, training_size
from .chart import chart
from .interleaved import BenchOptions, OnRound, bench
from .machine import device_name
from .statistics import between
from .worker import OURS

TABLE_PROTOCOL = (
    "As MMSegmentation's: batch 1, a whole image of the data set's usual size at the preset's test size, random "
    "weights; normalise, network and post-processing, not reading and resizing; after a warm-up, synchronised. Class "
    "logits of panoptic and instance models are replaced, as of a trained model. Training: 2 images of the crop."
)
TABLE_OPTIONS = {
    "picture": BenchOptions(rounds=20, warm_up=4, watched=2),
    "train": BenchOptions(rounds=5, warm_up=1, watched=1),
}
FIGURES = {"images_per_second", "train_memory_gib"}  # what only results of the tables have
TRAIN_BATCH = 2  # images of a GPU in the reference tables


def write(tree: dict[str, Any], out: Path) -> list[Path]:
    """NAME.json and NAME.png below `out`, NAME.json complete or not at all; earlier results stay, under their names.

    Raises:
        M2FError: the folder cannot be written.
    """
    stem = free_stem(out, name_of(tree))
    files = write_json(out / f"{stem}.json", tree)
    return files + write_image(out / f"{stem}.png", chart(tree), format="PNG")


def name_of(tree: dict[str, Any]) -> str:
    """Such as cityscapes-swin-t-forward-fp32-512x1024-b1-vs-huggingface."""
    size = size_of(tree, "x").replace(" ", "-")
    parts = [tree["model"]["name"], tree["what"], tree["precision"], size, f"b{tree['batch']}"]
    parts += ["compiled"] if tree["compile"] else []
    parts += [tree["engine"]] if tree["engine"] else []
    parts += [f"vs-{tree['peer']['name']}"] if tree["peer"] else []
    return safe_name("-".join(map(str, parts)).replace("/", "-"))


def free_stem(out: Path, name: str) -> str:
    """`name`, or name-2, name-3, … where there is such a result already."""
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(stem for stem in numbered if not (out / f"{stem}.json").exists())


# --- for people -------------------------------------------------------------------------------------------------------


def rows(tree: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a row per side."""
    columns = [
        "side",
        "seconds",
        "quartiles",
        "images/s",
        "cpu s",
        "other cores",
        "resident MiB",
        "device MiB",
        "J/image",
    ]
    cells = []
    for name, side in tree["sides"].items():
        memory = side["memory"]
        cells.append(
            [
                name,
                f"{side['median']:.4g}",
                f"{side['low']:.4g}-{side['high']:.4g}",
                f"{side['images_per_second']:.4g}",
                f"{side['cpu_seconds']:.4g}",
                told(side["other_cores"], ".2f"),
                told(memory["resident_growth_mib"], ".0f"),
                told(memory["device_peak_mib"], ".0f"),
                told(side["joules_per_image"], ".4g"),
            ]
        )
    return columns, cells


def told(value: float | None, spec: str) -> str:
    return "not told" if value is None else format(value, spec)


def stage_rows(tree: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a row per stage, in milliseconds of one run, with what is computed there."""
    sides = {name: side["stages"] for name, side in tree["sides"].items() if side["stages"]}
    flops, parameters = tree["flops"] or {}, tree["model"]["parameters"]
    names = list(dict.fromkeys(stage for stages in sides.values() for stage in stages))
    columns = ["stage", *(f"{name} ms" for name in sides), "GFLOP", "parameters"]
    return columns, [
        [
            stage,
            *(
                told(None if stage not in stages else 1000 * stages[stage], ".1f").replace("not told", "-")
                for stages in sides.values()
            ),
            f"{flops[stage] / 1e9:.1f}" if stage in flops else "-",
            f"{parameters[stage] / 1e6:.1f} M" if stage in parameters else "-",
        ]
        for stage in names
    ]


def headline(tree: dict[str, Any]) -> str:
    """What was timed, in one line."""
    model = tree["model"]
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    size = f"{tree['batch']} x 3 x {size_of(tree)}" if tree["network_input"] else _sizes(tree)
    return (
        f"{tree['what']} of {model['name']} ({weights}), {size}, {tree['precision']}, on {tree['device']}, "
        f"torch {tree['machine']['torch']}, {circumstances(tree)}, {tree['rounds']} rounds"
    )


def _sizes(tree: dict[str, Any]) -> str:
    """Such as "4 images that the network sees as 800 x 1088 to 896 x 800", by their pixels."""
    seen = sorted((seen for _, seen in tree["sizes"]), key=math.prod)
    first, last = (" x ".join(map(str, size)) for size in (seen[0], seen[-1]))
    return f"{len(seen)} images, {tree['batch']} at a time, that the network sees as {first} to {last}"


def findings(tree: dict[str, Any]) -> list[str]:
    """Ratios, differences, FLOPs and the like, a sentence each."""
    lines = []
    for name, each in (tree["ratio"] or {}).items():
        lines.append(f"{name.replace('_', ' ')}: {tree['peer']['name']} / m2f = {each['value']:.2f}{between(each)}")
    if tree["peer"] and tree["peer"]["batch"] != tree["batch"]:
        lines.append(f"{tree['peer']['name']} takes {tree['peer']['batch']} image at a time, m2f {tree['batch']}")
    for name, each in (tree["difference"] or {}).items():
        lines.append(f"difference of {name}: " + ", ".join(f"{key} {_number(value)}" for key, value in each.items()))
    if tree["flops"]:
        lines.append(f"{tree['flops']['total'] / 1e9:.1f} GFLOP a run{_share(tree)}")
    if tree.get("quality"):
        lines.append(_quality(tree["quality"], tree["precision"]))
    return [*lines, f"energy: {tree['machine']['energy']}"]


def _share(tree: dict[str, Any]) -> str:
    if tree["share_of_peak"] is None:
        return ""
    percent, peak = 100 * tree["share_of_peak"], tree["matmul_peak"] / 1e9
    return f", {percent:.0f} % of the {peak:.0f} GFLOP/s of a large matrix product here"


def _quality(found: dict[str, Any], precision: str) -> str:
    interval = "" if found["low"] is None else f" (95 %: {found['low']:+.2f} to {found['high']:+.2f})"
    return (
        f"quality in {precision}: {found['name']} {found['b']:.2f} beside {found['a']:.2f} in fp32, "
        f"{found['difference']:+.2f}{interval} over {found['pictures']} images of {found['data']}"
    )


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


# --- the reference table ----------------------------------------------------------------------------------------------


def table_presets() -> list[Config]:
    """The rows of the reference tables."""
    return [each for each in map(configuration.load, configuration.preset_names()) if each.published]


def table_options(what: str, rounds: int | None = None, warm_up: int | None = None) -> BenchOptions:
    """Rounds of the protocol of the tables, unless somebody wants others.

    Raises:
        ConfigError: another what than the tables have.
    """
    if what not in TABLE_OPTIONS:
        raise ConfigError(f"--preset all measures image or train, not {what!r}.")
    asked = {"rounds": rounds, "warm_up": warm_up}
    return replace(TABLE_OPTIONS[what], **{key: value for key, value in asked.items() if value is not None})


def sweep(
    case: Case,
    presets: Sequence[Config],
    out: Path,
    options: BenchOptions,
    on_start: Callable[[str], None] | None = None,
    on_round: OnRound | None = None,
    *,
    skip_existing: bool = False,
) -> Iterator[tuple[str, dict[str, Any] | M2FError]]:
    """Measure presets by the protocol of the tables, each in a process of its own, and write a file for each.

    Presets that are the same work (other weights, other recipes) are measured once. One that cannot be measured gives
    its error, and the others go on.

    Args:
        case: what ("picture" or "train"), device, precision, threads and the like; its preset and size do not count.
        options: of `table_options`.
        skip_existing: what `out` has of the same work under the same `conditions` is not measured again.

    Raises:
        DataError: a file in `out` that is no json, where there is something to skip.
    """
    before = _measured_before(case, out) if skip_existing else {}
    known: dict[str, dict[str, Any] | M2FError] = {}
    for preset in presets:
        key = work_of(preset, case)
        if preset.name in before:
            known.setdefault(key, before[preset.name])
            yield preset.name, before[preset.name]
            continue
        if key not in known:
            if on_start is not None:
                on_start(preset.name)
            known[key] = _measured(replace(case, preset=preset.name, **_of_table(case)), options, on_round)
            if isinstance(known[key], dict):
                known[key]["conditions"] = conditions(case)
        found = known[key]
        if isinstance(found, dict):
            found = {**found, "model": {**found["model"], "name": preset.name, "measured_as": found["model"]["name"]}}
            write(found, out)
        yield preset.name, found


def _measured_before(case: Case, out: Path) -> dict[str, dict[str, Any]]:
    """Rows of the table that are there already, by preset."""
    wanted = conditions(case)
    return {
        tree["model"].get("name"): tree
        for tree in read_trees(out, "*.json")
        if FIGURES & tree.keys() and tree.get("conditions") == wanted and _is_whole(tree)
    }


def _is_whole(tree: dict[str, Any]) -> bool:
    """Whether a result has all that tables and names of files are made of."""
    sides = tree.get("sides")
    is_there = {"what", "precision", "batch", "compile", "engine", "peer", "device", "model"} <= tree.keys()
    return (
        is_there
        and isinstance(sides, dict)
        and isinstance(sides.get(OURS), dict)
        and isinstance(sides[OURS].get("images_per_second"), int | float)
    )


def conditions(case: Case) -> dict[str, Any]:
    """What makes two measurements of a preset the same one, however often it was run."""
    return {
        "what": case.what,
        "device": device_name(choose_device(case.device)),
        "precision": case.precision,
        "threads": case.threads,
        "compile": case.compile,
        "keep_memory": case.keep_memory,
    }


def _of_table(case: Case) -> dict[str, Any]:
    return {"model": None, "size": None, "batch": TRAIN_BATCH if case.what == "train" else 1}


def work_of(preset: Config, case: Case) -> str:
    """Two presets with the same one are the same work."""
    common = [
        preset.model.model_dump_json(exclude={"backbone": {"pretrained"}}),
        preset.data.dataset,
        preset.data.classes,
        preset.task,
    ]
    if case.what == "train":
        loss = preset.train.loss.model_dump_json() if preset.train else ""
        return "\n".join([*common, loss, str(training_size(replace(case, **_of_table(case)), preset))])
    return "\n".join([*common, preset.test.model_dump_json(exclude={"tta"})])


def _measured(case: Case, options: BenchOptions, on_round: OnRound | None) -> dict[str, Any] | M2FError:
    try:
        tree = bench(case, options, on_round)
    except M2FError as error:
        return error
    return for_table(tree)


def for_table(tree: dict[str, Any]) -> dict[str, Any]:
    """A result with what `m2f presets table` reads: speed or training memory, and on what."""
    ours = tree["sides"][OURS]
    memory = ours["memory"]["device_peak_mib"] or ours["memory"]["resident_peak_mib"]
    gib = None if memory is None else memory / 1024
    figures = (
        {"train_memory_gib": gib}
        if tree["what"] == "train"
        else {"images_per_second": ours["images_per_second"], "memory_gib": gib}
    )
    return {**tree, "device": _device_of_table(tree), "protocol": f"{TABLE_PROTOCOL} {tree['protocol']}", **figures}


def _device_of_table(tree: dict[str, Any]) -> str:
    """Where, and all that is not as usual: "NVIDIA H200, bf16, compiled"; on a CPU threads too."""
    on_cpu = tree["sides"][OURS]["memory"]["device_peak_mib"] is None
    threads = f"{tree['threads']} thread{'s' * (tree['threads'] != 1)}"
    found = {
        tree["device"]: True,
        threads: on_cpu,
        tree["precision"]: tree["precision"] != "fp32",
        "compiled": tree["compile"],
        "memory kept": "m2f keeps" in allocators(tree),
    }
    return ", ".join(name for name, is_told in found.items() if is_told)

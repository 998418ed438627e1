"""Results of benchmarks as files and rows for people, and the reference table of all presets."""

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
from .captions import allocators, circumstances, size_of, work_name
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
FIGURES = {"images_per_second", "train_memory_gib"}  # keys of results of the reference tables alone
TRAIN_BATCH = 2  # images per GPU in the reference tables


def write(tree: dict[str, Any], out: Path) -> list[Path]:
    """Write NAME.json and NAME.png below `out`. NAME.json is complete or missing, and earlier results stay.

    Raises:
        M2FError: the folder cannot be written.
    """
    stem = free_stem(out, name_of(tree))
    files = write_json(out / f"{stem}.json", tree)
    return files + write_image(out / f"{stem}.png", chart(tree), format="PNG")


def name_of(tree: dict[str, Any]) -> str:
    """Return the name of a result, such as cityscapes-swin-t-forward-fp32-512x1024-b1-vs-huggingface."""
    size = size_of(tree, "x").replace(" ", "-")
    parts = [tree["model"]["name"], tree["what"], tree["precision"], size, f"b{tree['batch']}"]
    parts += ["compiled"] if tree["compile"] else []
    parts += [tree["engine"]] if tree["engine"] else []
    parts += [f"vs-{tree['peer']['name']}"] if tree["peer"] else []
    return safe_name("-".join(map(str, parts)).replace("/", "-"))


def free_stem(out: Path, name: str) -> str:
    """Return `name`, or name-2, name-3, … if there is such a result already."""
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(stem for stem in numbered if not (out / f"{stem}.json").exists())


# --- for people -------------------------------------------------------------------------------------------------------


def rows(tree: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a table with a row per side."""
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
    """Return columns and rows of a table with a row per stage: milliseconds of one run, GFLOP and parameters."""
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
    """Return the work and its conditions in one line."""
    model = tree["model"]
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    size = f"{tree['batch']} x 3 x {size_of(tree)}" if tree["network_input"] else _sizes(tree)
    return (
        f"{work_name(tree)} of {model['name']} ({weights}), {size}, {tree['precision']}, on {tree['device']}, "
        f"torch {tree['machine']['torch']}, {circumstances(tree)}, {tree['rounds']} rounds"
    )


def _sizes(tree: dict[str, Any]) -> str:
    """Return the range of input sizes, by pixels: "4 images, 1 at a time, that the network sees as 800 x 1088 to …"."""
    seen = sorted((seen for _, seen in tree["sizes"]), key=math.prod)
    first, last = (" x ".join(map(str, size)) for size in (seen[0], seen[-1]))
    return f"{len(seen)} images, {tree['batch']} at a time, that the network sees as {first} to {last}"


def findings(tree: dict[str, Any]) -> list[str]:
    """Return a line for each ratio and difference, and for FLOPs, quality and energy."""
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


def _quality(loss: dict[str, Any], precision: str) -> str:
    interval = "" if loss["low"] is None else f" (95 %: {loss['low']:+.2f} to {loss['high']:+.2f})"
    return (
        f"quality in {precision}: {loss['name']} {loss['b']:.2f} beside {loss['a']:.2f} in fp32, "
        f"{loss['difference']:+.2f}{interval} over {loss['pictures']} images of {loss['data']}"
    )


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


# --- the reference table ----------------------------------------------------------------------------------------------


def table_presets() -> list[Config]:
    """Return the presets with published figures, which are the rows of the reference tables."""
    return [each for each in map(configuration.load, configuration.preset_names()) if each.published]


def table_options(what: str, rounds: int | None = None, warm_up: int | None = None) -> BenchOptions:
    """Return the options of the protocol of the reference tables, with other rounds if given.

    Raises:
        ConfigError: the reference tables have no such work.
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
    """Measure presets by the protocol of the reference tables, each in its own process, and write a file for each.

    Presets that are the same work (other weights, other recipes) are measured once. A preset that cannot be measured
    yields its error, and the others go on.

    Args:
        case: the work ("picture" or "train"), device, precision, threads and so on. Its preset and size are ignored.
        options: from `table_options`.
        skip_existing: do not repeat results in `out` of the same work under the same `conditions`.

    Yields:
        Name of a preset, and its result or error.

    Raises:
        DataError: with `skip_existing`, a file in `out` is no JSON.
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
        result = known[key]
        if isinstance(result, dict):
            model = {**result["model"], "name": preset.name, "measured_as": result["model"]["name"]}
            result = {**result, "model": model}
            write(result, out)
        yield preset.name, result


def _measured_before(case: Case, out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the table that are in `out` already, by preset."""
    expected = conditions(case)
    return {
        tree["model"].get("name"): tree
        for tree in read_trees(out, "*.json")
        if FIGURES & tree.keys() and tree.get("conditions") == expected and _is_whole(tree)
    }


def _is_whole(tree: dict[str, Any]) -> bool:
    """Return True if a result has all keys that tables and names of files need."""
    sides = tree.get("sides")
    is_there = {"what", "precision", "batch", "compile", "engine", "peer", "device", "model"} <= tree.keys()
    return (
        is_there
        and isinstance(sides, dict)
        and isinstance(sides.get(OURS), dict)
        and isinstance(sides[OURS].get("images_per_second"), int | float)
    )


def conditions(case: Case) -> dict[str, Any]:
    """Return the conditions that two measurements of a preset must share to be the same, whatever their rounds."""
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
    """Return a key of the work of a preset. Presets with equal keys are the same work."""
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
    """Return a result with the keys that `m2f presets table` reads: speed or training memory, and the device."""
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
    """Return the device and unusual conditions, such as "NVIDIA H200, bf16, compiled", on a CPU with its threads."""
    on_cpu = tree["sides"][OURS]["memory"]["device_peak_mib"] is None
    threads = f"{tree['threads']} thread{'s' * (tree['threads'] != 1)}"
    words = {
        tree["device"]: True,
        threads: on_cpu,
        tree["precision"]: tree["precision"] != "fp32",
        "compiled": tree["compile"],
        "memory kept": "m2f keeps" in allocators(tree),
    }
    return ", ".join(word for word, is_shown in words.items() if is_shown)

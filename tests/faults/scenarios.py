"""The command lines that are disturbed, and the data and the model that they work on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from faults.harness import OUT, ROOM, Fault, Runner, Scenario
from helpers.folders import write_image
from helpers.prepare_tools import ade20k_folder

from m2f_cli.config.run_folder import RESUME as STATE
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.dataset_tools.convert import coco_panoptic, retask
from m2f_cli.dataset_tools.convert.write import write_splits
from m2f_cli.inference.sources import RUN_MARK
from m2f_cli.training import resume

COUNTS = {"train": 8, "val": 3}
SIZE = (64, 96)
NETWORK = (
    "model.backbone.width=8",
    "model.pixel_decoder.num_layers=1",
    "model.pixel_decoder.ffn_dim=64",
    "model.decoder.num_layers=2",
    "model.decoder.ffn_dim=64",
    "train.loss.num_points=32",
    "train.schedule.warmup_iterations=0",
    "train.augment=[{name: flip, p: 0.5}, {name: crop, height: 64, width: 64, category_max_area: 1.0}]",
    "test.resize.short_edge=64",
    "test.resize.max_edge=96",
)
TRAINING = (
    "train.iterations=5",
    "train.eval_every=2",
    "train.checkpoint_every=2",
    "train.optimizer.learning_rate=0.001",
    "train.ema_decay=0.9",
)


def words(changes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for change in changes for word in ("--set", change))


ON_CPU = ("--device", "cpu")
TRAIN = ("train", "--preset", "tiny", "--init", "random", "--data", "data", *ON_CPU, *words(NETWORK))
WHOLE_TRAINING = (*TRAIN, *words(TRAINING), "--batch", "4", "--keep", "1", "--out", OUT)
TRAIN_ACCUMULATING = (*WHOLE_TRAINING, "--micro-batch", "2", "--workers", "2")
TRAIN_SHARED = (*WHOLE_TRAINING, "--workers", "1")
RESUME = ("train", "--out", OUT, "--resume", *ON_CPU)
PREDICT = (
    "predict",
    "images",
    "--model",
    "model",
    *ON_CPU,
    "--save",
    "overlay,coco-panoptic,label-png",
    "--report",
    "--out",
    OUT,
)
PREDICT_SHARDS = (
    *("predict", "images", "--model", "model", *ON_CPU, "--save", "parquet,webdataset,coco-panoptic-shards"),
    *("--shard-size", "2", "--out", OUT),
)
EVAL = ("eval", "--model", "model", "--data", "data", *ON_CPU, "--save", "coco-panoptic,label-png", "--out", OUT)
CONVERT = ("data", "convert", "data", OUT)
PREPARE = ("data", "prepare", "ade20k", "--root", "ade", "--out", OUT, "--partial")
KILLS = ("killed_before_operation", "killed_inside_a_write", "killed_at_a_moment", "killed_command_line")
ERRORS = ("failing_write", "short_write", "full_disk", "read_only_folder", "turned_read_only")
SOME = ("killed_before_operation", "killed_inside_a_write", "failing_write", "full_disk")
ALWAYS = (*KILLS, "asked_to_end", *ERRORS)


def make_given(folder: Path, runner: Runner) -> Path:
    """Make data sets and a model in an empty folder, and return it."""
    parts = {split: synthetic_dataset(split, count, size=SIZE, objects=(3, 6)) for split, count in COUNTS.items()}
    categories = parts["train"].categories
    writer = coco_panoptic.TARGET.open(categories, "data")
    recast = retask.plan(categories, "panoptic", "panoptic", ())
    write_splits({split: data.records for split, data in parts.items()}, folder / "data", writer, recast)
    for number, record in enumerate(parts["val"].records):
        write_image(folder / "images" / f"{number}.png", record.read_image())
    ade20k_folder(folder / "ade", 4)
    arguments = (*TRAIN, *words(("train.iterations=1", "train.eval_every=0")), "--batch", "2", "--workers", "0")
    (folder / ROOM).mkdir()
    ended = runner.run((*arguments, "--out", "model"), folder, Fault("nothing"))
    if ended.code:
        raise RuntimeError(f"The model cannot be trained: {ended}")
    shutil.rmtree(folder / ROOM)
    return folder


# --- what must not be done again --------------------------------------------------------------------------------------


def steps_of_the_checkpoint(folder: Path) -> set[str]:
    """Return the lines of metrics.jsonl that a checkpoint covers. Their clocks tell whether a step was done again."""
    checkpoint = folder / "checkpoints" / STATE
    if not checkpoint.is_file():
        return set()
    done = resume.read(checkpoint)["iteration"]
    entries = [(line, json.loads(line)) for line in whole(folder / "metrics.jsonl")]
    steps = {line for line, entry in entries if entry["kind"] == "train" and entry["iteration"] < done}
    assert len(steps) == done, f"metrics.jsonl has {len(steps)} steps of {done} of the checkpoint"
    return steps


def lines_of(name: str) -> Callable[[Path], set[str]]:
    """Return a function for the lines of a journal about images that were finished. Each line has clocks."""

    def kept(folder: Path) -> set[str]:
        return {line for line in whole(folder / name) if '"error"' not in line}

    return kept


def whole(path: Path) -> list[str]:
    """Return the lines of a file without half a line at the end; none of a file that is missing."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


# --- the table --------------------------------------------------------------------------------------------------------

EXPORTS = {
    "safetensors": f"{OUT}.safetensors",
    "huggingface": OUT,
    "detectron2": f"{OUT}.pth",
    "torch": f"{OUT}.pt2",
    "onnx": f"{OUT}.onnx",
}


def export(name: str) -> Scenario:
    start = ("export", "--model", "model", "--format", name, "--out", EXPORTS[name])
    again = (start, (*start, "--overwrite"))
    return Scenario(f"export {name}", start, again, ALWAYS if name in ("safetensors", "huggingface") else SOME)


def convert(to: str, workers: int) -> Scenario:
    start = (*CONVERT, "--to", to, "--workers", str(workers))
    faults = (*ALWAYS, "vanished_image", *(["killed_worker"] if workers > 1 else []))
    name, image = f"data convert to {to}, {workers} workers", "data/train/scene-000003.png"
    return Scenario(name, start, (start,), faults, image, is_done_if_refused=True)


def prepare(workers: int) -> Scenario:
    start = (*PREPARE, "--workers", str(workers))
    faults = (*ALWAYS, "vanished_image", *(["killed_worker"] if workers > 1 else []))
    image = "ade/annotations_instance/training/ADE_train_00000003.png"
    return Scenario(f"data prepare, {workers} workers", start, (start,), faults, image)


SCENARIOS = (
    Scenario(
        "predict",
        PREDICT,
        ((*PREDICT, "--skip-existing"),),
        (*ALWAYS, "vanished_image"),
        "images/2.png",
        kept=lines_of(RUN_MARK),
    ),
    Scenario(
        "predict to shards",
        PREDICT_SHARDS,
        ((*PREDICT_SHARDS, "--skip-existing"),),
        (*ALWAYS, "vanished_image"),
        "images/2.png",
        kept=lines_of(RUN_MARK),
    ),
    Scenario(
        "eval",
        EVAL,
        ((*EVAL, "--resume"),),
        (*ALWAYS, "vanished_image"),
        "data/val/scene-000002.png",
        kept=lines_of("pictures.jsonl"),
    ),
    convert("coco-instance", 1),
    convert("label-maps", 2),
    prepare(1),
    prepare(2),
    *map(export, EXPORTS),
    Scenario(
        "train",
        TRAIN_ACCUMULATING,
        (RESUME, TRAIN_ACCUMULATING),
        (*ALWAYS, "vanished_image", "error_in_a_worker", "killed_worker"),
        "data/train/scene-000003.png",
        kept=steps_of_the_checkpoint,
    ),
    Scenario(
        "train, two processes",
        TRAIN_SHARED,
        (RESUME, TRAIN_SHARED),
        ("lost_process", "killed_before_operation", "failing_write", "vanished_image"),
        "data/train/scene-000003.png",
        processes=2,
        kept=steps_of_the_checkpoint,
    ),
)

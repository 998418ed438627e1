"""Targets of predictions of other tools: scored against annotations, both of which may be mutated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import folders

from m2f_cli.evaluation.score_files.score import score

from .harness import Target
from .mutators import folder_mutants

TABLES = {".json": 4.0, ".txt": 4.0, ".jpg": 0.1}
CROWDLESS = [{**each, "iscrowd": 0} for each in folders.SEGMENTS]


def _panoptic(folder: Path) -> None:
    folders.coco_panoptic(folder / "truth")
    segments = [{"id": each["id"], "category_id": each["category_id"], "score": 0.5} for each in CROWDLESS]
    rows = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    tree = {"annotations": rows, "categories": folders.ALL}
    folders.write_json(folder / "found/panoptic.json", tree)
    folders.write_ids(folder / "found/panoptic/1.png", folders.IDS)
    folders.write_json(folder / "found/predictions.json", {"formats": ["coco-panoptic"]})


def _instances(folder: Path) -> None:
    box = folders.rectangle(1, 2, 11, 7)
    folders.coco_instances(folder / "truth", [folders.annotation(1, 1, 3, [box]), folders.annotation(2, 1, 17, [box])])
    counts = {"size": list(folders.SIZE), "counts": [10, 5, 585]}
    rows = [
        {"image_id": 1, "category_id": key, "score": score_, "segmentation": shape}
        for key, score_, shape in ((3, 0.9, [box]), (17, 0.5, counts), (3, 1, [[0, 0, 9, 0, 9, 9]]))
    ]
    folders.write_json(folder / "found/instances.json", rows)


def _label_maps(folder: Path) -> None:
    values_HW = folders.plane((1, 0, 0, 10, 10), (2, 10, 10, 20, 30))
    for name in ("truth", "found"):
        for number in range(2):
            folders.write_mask(folder / f"{name}/{number}.png", np.roll(values_HW, number, 1))
    folders.write_text(folder / "truth/classes.txt", "a\nb\nc\n")


def _cityscapes(folder: Path) -> None:
    folders.cityscapes(folder / "truth")
    stem = "aachen_000000_000019"
    folders.write_text(folder / f"found/{stem}.txt", "masks/0.png 26 0.9\nmasks/1.png 24 0.5\n")
    for number, box in enumerate([(255, 10, 0, 14, 5), (255, 15, 0, 18, 9)]):
        folders.write_mask(folder / f"found/masks/{number}.png", folders.plane(box))


SAMPLES: dict[str, Callable[[Path], None]] = {
    "panoptic": _panoptic,
    "instances": _instances,
    "label maps": _label_maps,
    "cityscapes": _cityscapes,
}


def read(path: Path) -> None:
    """Do what `m2f eval --predictions` does."""
    found = score(path / "found", path / "truth")
    json.dumps(found.figures, default=float)


TARGETS = [Target(f"score {name}", folder_mutants(make, weights=TABLES), read) for name, make in SAMPLES.items()]

"""What the tests of `m2f data prepare` share."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from m2f_cli.dataset_tools.prepare import run


def prepare(name, root, out=None, **options):
    return run.prepare(name, root, out, **{"workers": 1, "partial": True, **options})


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def ade20k_folder(root: Path, count: int) -> Path:
    """ADEChallengeData2016 with `count` images of training and two of validation."""
    random = np.random.default_rng(0)
    for split, short, number_of in (("training", "train", count), ("validation", "val", 2)):
        for number in range(1, number_of + 1):
            name = f"ADE_{short}_{number:08d}"
            kinds = np.zeros((20, 30), np.uint8)
            kinds[2:9, 3:11], kinds[10:15, 20:30] = 4, 4  # two persons
            objects = np.zeros((20, 30, 3), np.uint8)
            objects[..., 0], objects[2:9, 3:11, 1], objects[10:15, 20:30, 1] = kinds, 1, 2
            labels = np.where(kinds > 0, 13, random.integers(0, 4, (20, 1))).astype(np.uint8)
            save(root / "images" / split / f"{name}.jpg", np.zeros((20, 30, 3), np.uint8))
            save(root / "annotations" / split / f"{name}.png", labels)
            save(root / "annotations_instance" / split / f"{name}.png", objects)
    return root


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def zipped(folder: Path, target: Path, above: str = "") -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, above + path.relative_to(folder).as_posix())
    return target

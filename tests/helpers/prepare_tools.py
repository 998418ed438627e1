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


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def zipped(folder: Path, target: Path, above: str = "") -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, above + path.relative_to(folder).as_posix())
    return target

"""The published numbers: `tests/golden`, and the full fixtures where somebody has them.

A fixture is NAME.json with NAME.npz or NAME.safetensors. Its name starts with its stage ("05", "08e"), so that a file
that is put into the folder is tested with the others. The full fixtures lie in the folders `golden` and `golden_vit`
(and `heldout`, if there is one) of `M2F_TEST_DATA`; without that variable in the folder `shared` beside the checkout.
Their tests run in addition and are marked `reference`.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

OURS = Path(__file__).resolve().parents[1] / "golden"
BESIDE = Path(__file__).resolve().parents[3] / "shared"


def reference_folder() -> Path | None:
    """The folder of full fixtures, facts and data packs; None when there is none. An empty M2F_TEST_DATA is none."""
    given = os.environ.get("M2F_TEST_DATA")
    if given is None:
        return BESIDE if BESIDE.is_dir() else None
    if given and not Path(given).expanduser().is_dir():
        raise pytest.UsageError(f"M2F_TEST_DATA names no folder: {given}")
    return Path(given).expanduser() if given else None


@functools.cache
def info_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def files_in(folder: Path, stages: tuple[str, ...]) -> list[Path]:
    found = sorted(path for path in folder.glob("*.json") if path.name.startswith(stages))
    return [path for path in found if any(path.with_suffix(end).exists() for end in (".npz", ".safetensors"))]


def params(
    *stages: str,
    where: Callable[[dict], bool] = lambda info: True,
    each: Callable[[dict], Iterable] = lambda info: "-",
) -> list:
    """Parameters for tests (or fixtures) that hand them to `read`: one for each file of these stages.

    Args:
        where: whether a file has what the test compares, told by its json.
        each: several parameters of one file, such as cases or images; they become `.part`.
    """
    reference = reference_folder()
    folders = [(OURS, (), "")]
    if reference is not None:
        folders += [
            (reference / name, (pytest.mark.reference,), f"{name}-") for name in ("golden", "golden_vit", "heldout")
        ]
    return [
        pytest.param((path, part), marks=marks, id=f"{prefix}{path.stem}" + ("" if part == "-" else f"-{part}"))
        for folder, marks, prefix in folders
        for path in files_in(folder, stages)
        if where(info_of(path))
        for part in each(info_of(path))
    ]


def for_files(*stages: str, **options) -> pytest.MarkDecorator:
    """Parametrise a test, which takes `golden_file`, over the files of these stages."""
    return pytest.mark.parametrize("golden_file", params(*stages, **options), indirect=True)


def read(path: Path, part: Any = "-") -> SimpleNamespace:
    """A fixture: `.name`, `.info` (the json), `.tensors` (name → tensor, read anew) and `.part`."""
    info = json.loads(path.read_text(encoding="utf-8"))
    return SimpleNamespace(name=path.stem, info=info, tensors=tensors_of(path, info), part=part)


def tensors_of(path: Path, info: dict) -> dict[str, torch.Tensor]:
    packed = path.with_suffix(".npz")
    if not packed.exists():
        from safetensors.torch import load_file

        return load_file(path.with_suffix(".safetensors"))
    with np.load(packed) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for name, (file, key) in info.get("elsewhere", {}).items():
        with np.load(path.with_name(f"{file}.npz")) as arrays:
            found[name] = torch.from_numpy(arrays[key])
    return found


def read_list(name: str) -> dict[str, Any]:
    """A json of `tests/golden` that stands alone (10 to 12): groups of parameters, names and shapes."""
    plain = OURS / f"{name}.json"
    if plain.exists():
        return json.loads(plain.read_text(encoding="utf-8"))
    return json.loads(gzip.decompress(plain.with_suffix(".json.gz").read_bytes()))


def has(info: dict, start: str) -> bool:
    """Whether a file holds a tensor whose name starts so."""
    return "tensors" not in info or any(name.startswith(start) for name in info["tensors"])


def images_of(info: dict) -> list[int]:
    """The images of a full model's batch that the file holds results of."""
    return info.get("images", list(range(len(info["image_sizes"]))))

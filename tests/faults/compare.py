"""The files of two runs, compared without what is a clock."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from m2f_cli.config.run_folder import RESUME as STATE
from m2f_cli.inference.sources import RUN_MARK
from m2f_cli.runtime.locks import is_lock
from m2f_cli.training import resume

CLOCKS = ("images_per_second", "data_share", "seconds", "times_ms")
UNLIKE = (*CLOCKS, "command", "crc32")  # keys of values that a run that went on has otherwise
CHANGING = ("curves.png", "report.html")  # draw clocks
RECORDS = (".json", ".jsonl")


def contents(folder: Path, here: Path) -> dict[str, Any]:
    """Return name → content of all files below `folder`, as values that are equal where the files mean the same.

    Args:
        here: the working folder, whose name differs from run to run.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in CHANGING)
    return {path.relative_to(folder).as_posix(): content(path, here) for path in paths}


def content(path: Path, here: Path) -> Any:
    if path.name == STATE:
        return plain(resume.read(path))
    data = path.read_bytes().replace(str(here).encode(), b"HERE")
    if path.suffix in RECORDS:
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        entries = [json.loads(line) for line in lines]
        if path.name == RUN_MARK:  # an image may have several entries: the newest counts
            return plain({entry.get("record", {}).get("name", ""): entry for entry in entries})
        return plain(entries)
    return hashlib.sha256(data).hexdigest()


def plain(tree: Any) -> Any:
    """Return a tree with tensors as hashes of their bits, and without clocks and command lines."""
    if isinstance(tree, torch.Tensor):
        bits = tree.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{tree.dtype} {tuple(tree.shape)} {hashlib.sha256(bits).hexdigest()}"
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items() if key not in UNLIKE}
    return [plain(value) for value in tree] if isinstance(tree, (list, tuple)) else repr(tree)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return what differs between the files of two runs, one text for each."""
    found = [f"missing: {name}" for name in one.keys() - other.keys()]
    found += [f"too much: {name}" for name in other.keys() - one.keys()]
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            found.append(f"{name} differs{where(one[name], other[name])}")
    return sorted(found)


def where(one: Any, other: Any) -> str:
    """Return the place of the first difference of two trees."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(f"/{key}{where(one[key], other[key])}" for key in one if one[key] != other[key])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next(f"/{i}{where(a, b)}" for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return f": {str(one)[:80]} and {str(other)[:80]}"


def leftovers(folder: Path) -> list[str]:
    """Return unfinished files, locks and other hidden files below a folder."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if (is_lock(path) or path.suffix in (".part", ".tmp", ".lock") or path.name.startswith("."))
        and path.name != RUN_MARK
    ]

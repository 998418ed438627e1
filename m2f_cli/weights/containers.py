"""Reading files of weights, safely, by what they are and not by what they are called (facts 7.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from .safe_pickle import BROKEN, RestrictedUnpickler, load_torch, refused

INDEX_SUFFIX = ".index.json"  # of a Hugging Face file that is cut into shards
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before PyTorch 1.6 begins with this number
_STATE_KEYS = ("state_dict", "model", "model_state_dict")


@dataclass
class Container:
    """What a file holds: tensors by name, and whatever else stood beside them.

    tensors: on the CPU; of safetensors and zipped torch files they are mapped, not read.
    extra: the rest of a training file, such as `meta` of OpenMMLab; header metadata of safetensors.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> Container:
    """Read any file of weights: safetensors (also in shards), `torch.save` of any age, pickles of detectron2.

    Nothing in the file is run.

    Raises:
        WeightsError: missing, empty, truncated, not a file of weights, or asking for code to be run.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}.") from error
    if start[:4] == b"PK\x03\x04":
        return _from_tree(_read_pickled(path, partial(load_torch, mmap=True)), path)
    if start.startswith(_LEGACY_TORCH):
        return _from_tree(_read_pickled(path, load_torch), path)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and len(start) > 1:
        return _from_tree(_read_pickled(path, _load_pickle), path)
    if _looks_like_safetensors(start, size):
        return _read_safetensors(path)
    raise WeightsError(f"{path} {_what_it_is(start, size)}")


def _looks_like_safetensors(start: bytes, size: int) -> bool:
    return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40


def _what_it_is(start: bytes, size: int) -> str:
    text = start.lstrip().lower()
    if size == 0:
        return "is empty. Download or copy it again."
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves. Run `git lfs pull` where it was cloned."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: a download was answered with a page. Download the file itself."
    if text.startswith((b"{", b"[")):
        return "is JSON, not weights. Give the folder that it is in, if that is a Hugging Face model."
    if b"onnx" in start or start[:2] == b"\x08\x08":
        return "looks like an ONNX file: a network to run, not weights to load."
    return "is not a file of weights that m2f knows: safetensors, torch.save or pickle."


def _read_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Container(tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_pickled(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except (*BROKEN, OSError) as error:  # a damaged archive makes torch seek to where nothing is
        found = re.search(r"GLOBAL (\S+)", str(error))  # what torch's own unpickler says of a name that it refuses
        if found:
            raise refused(found[1]) from error
        raise _damaged(path, error) from error


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return RestrictedUnpickler(file).load()


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return WeightsError(f"{path} is damaged or incomplete: {reason}.", hint="Download or copy it again.")


def _from_tree(tree: Any, path: Path) -> Container:
    """The tensors of what a pickle held: under the key that says so, or the mapping itself."""
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not tensors by name.")
    key = next((key for key in _STATE_KEYS if isinstance(tree.get(key), Mapping)), None)
    state = tree if key is None else tree[key]
    extra = {} if key is None else {str(name): value for name, value in tree.items() if name != key}
    if not state:
        raise WeightsError(f"{path} holds no weights.")
    return Container({str(name): _tensor(value, str(name), path) for name, value in state.items()}, extra)


def _tensor(value: Any, name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
        return torch.from_numpy(native.view(np.ndarray))
    raise WeightsError(
        f"{path}: {name!r} is a {type(value).__name__}, not a tensor.",
        hint="m2f reads files of weights, or training files with the weights under `model` or `state_dict`.",
    )


def _read_shards(index: Path) -> Container:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, error) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise WeightsError(f"{index} names a shard outside its own folder: {name!r}.")
        tensors.update(read(index.parent / name).tensors)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise WeightsError(f"{index} promises {absent[0]!r}, which is in none of its {len(names)} shards.")
    return Container(tensors)

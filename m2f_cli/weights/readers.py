"""Safe reading of weight files.

The content of a file decides on its format, not its name (docs/methods/published-behaviour.md#7-1).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError, about
from ..runtime import documents
from . import torch_files
from .pickle_source import Damaged

INDEX_SUFFIX = ".index.json"  # suffix of the index of Hugging Face shards
MOST_SHARDS = 10_000
MOST_TIMES = 8  # limit for the size of a file's tensors, which may share numbers, in file sizes
_PICKLES = (  # beginnings in protocols 2 to 5, and of dictionaries in protocols 0 and 1
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
    b"(dp",
    b"}q",
    b"ccollections\nOrderedDict\n",
)
# Keys of the weights in training files, best first.
_STATE_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "params_ema",
    "teacher",
    "student",
)
_DEEPEST_STATE = 3


@dataclass
class Container:
    """Content of a file of weights.

    Attributes:
        tensors: tensors by name, on the CPU. Those of safetensors and torch files are mapped, not read.
        extra: the rest of a training file, such as `meta` of OpenMMLab, or the header metadata of safetensors.
        notes: a sentence for the user that says which of several sets of weights was taken.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def path_of(ref: str | Path) -> Path:
    """Return the path that a reference may be, with ~ as the home folder. Nothing may be there.

    Raises:
        WeightsError: it cannot be looked up, because it is too long or a folder above it is closed.
    """
    path = Path(os.path.expanduser(ref))
    try:
        path.exists()
    except OSError as error:
        raise WeightsError(f"Cannot look for {str(ref)[:100]!r}: {error.strerror}.", hint="Check the path.") from error
    return path


def read(path: Path) -> Container:
    """Read any file of weights: safetensors (also in shards), `torch.save` of any age, pickles of detectron2.

    No code in the file is executed.

    Raises:
        WeightsError: the file is missing, empty, truncated, no file of weights, or asks for code to be run.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    try:
        status = path.stat()
        size, is_plain = status.st_size, stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if not is_plain:  # a pipe would be waited for, a device has no end
            raise WeightsError(f"{path} is no regular file.", hint="Save the weights to a file first.")
        with path.open("rb") as file:
            start = file.read(512)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise WeightsError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if start[:4] == torch_files.ZIP or start.startswith(torch_files.LEGACY):
        return _from_tree(_read_pickled(path, torch_files.read), path, size)
    if start.startswith(_PICKLES):
        return _from_tree(_read_pickled(path, torch_files.read_plain), path, size)
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
        with about(path):
            return load(path)
    except (Damaged, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
    return WeightsError(f"{path} is damaged or incomplete: {reason}.", hint="Download or copy it again.")


def _from_tree(tree: Any, path: Path, size: int) -> Container:
    """Return the tensors of an unpickled mapping, which may lie under a known key such as "state_dict"."""
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not tensors by name.")
    state, extra, notes = tree, {}, []
    for _ in range(_DEEPEST_STATE):
        known = [key for key in _STATE_KEYS if isinstance(state.get(key), Mapping)]
        known = [key for key in known if _has_tensors(state[key])] or ([] if _has_tensors(state) else known)
        if not known:
            break
        key = known[0]
        if len(known) > 1:
            notes.append(f"The file holds weights under {' and '.join(map(repr, known))}: those of {key!r} were taken.")
        extra |= {str(name): value for name, value in state.items() if name != key}
        state = state[key]
    if not state:
        raise WeightsError(f"{path} holds no weights.")
    tensors = {str(name): _tensor(value, str(name), path) for name, value in state.items()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > MOST_TIMES * size:
        raise WeightsError(f"{path} has {size:,} bytes, but names tensors of {total:,}, which no file of weights does.")
    return Container(tensors, extra, notes)


def _has_tensors(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor | np.ndarray) for value in state.values())


def _tensor(value: Any, name: str, path: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
        native = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
        return torch.from_numpy(native)
    raise WeightsError(
        f"{path}: {name!r} is a {type(value).__name__}, not a tensor.",
        hint="m2f reads files of weights, or training files with the weights under `model` or `state_dict`.",
    )


def _read_shards(index: Path) -> Container:
    tree = documents.read_json(index, error=WeightsError)
    weight_map = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index} should hold a weight_map of tensors to files.", hint="Download or copy it again.")
    names = sorted(set(weight_map.values()))
    if len(names) > MOST_SHARDS:
        raise WeightsError(f"{index} names {len(names):,} files, which no model is cut into.")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not name or Path(name).name != name or "\\" in name or name.endswith(INDEX_SUFFIX):
            raise WeightsError(f"{index} names a shard outside its own folder, or no file of weights: {name!r}.")
        shard = read(index.parent / name).tensors
        twice = sorted(set(shard) & set(tensors))
        if twice:
            raise WeightsError(f"{index}: two of its files hold {twice[0]!r}.")
        tensors.update(shard)
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise WeightsError(f"{index} lists {absent[0]!r}, which is in none of its {len(names)} shards.")
    return Container(tensors)

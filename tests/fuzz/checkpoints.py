"""Mutants of checkpoints in every container that m2f reads, of folders of transformers, and of a run's own files."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.harness import Target
from fuzz.spoil import json_bytes, odd_value, spoil_bytes, spoil_json, spoil_tree
from safetensors.torch import save as to_safetensors
from weights.models import CATEGORIES, RESNET, config_of, network_of

from m2f_cli import weights
from m2f_cli.config.schema import Component
from m2f_cli.inference.load_network import load_model
from m2f_cli.model import build
from m2f_cli.weights import key_tables, pretrained
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.write_huggingface import write_folder

Mutants = Iterator[tuple[str, Path]]
LARGEST = 10**6  # numbers of a tensor that a mutator copies


@functools.cache
def ours() -> bytes:
    """A checkpoint of m2f with a tiny network."""
    config = config_of()
    with tempfile.TemporaryDirectory() as folder:
        return weights.save(
            Path(folder, "a.safetensors"), network_of(config).state_dict(), config, CATEGORIES
        ).read_bytes()


@functools.cache
def foreign(swin: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a tiny network under detectron2's names."""
    return from_m2f(key_tables.DETECTRON2, network_of(config_of(None if swin else RESNET)).state_dict())


# --- tensors ----------------------------------------------------------------------------------------------------------


def spoil_state(rng: random.Random, state: dict[str, Any]) -> tuple[str, dict[Any, Any]]:
    """Return a description and tensors of which some have another name, shape, type or content."""
    state, done = dict(state), []
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(list(state))
        way = rng.choice(("shape", "shape", "type", "values", "remove", "rename", "swap", "add", "layer", "other"))
        value = state.pop(name)
        if (
            not isinstance(value, torch.Tensor) or value.numel() > LARGEST
        ):  # an earlier change; a copy would be too large
            value = torch.zeros(2)
        if way == "rename":
            state[_renamed(rng, name)] = value
        elif way == "swap" and state:
            twin = rng.choice(list(state))
            state[name], state[twin] = state[twin], value
        elif way == "add":
            state |= {name: value, rng.choice(("extra", "", "a.b.c", name + ".x", "x" * 5000)): value}
        elif way == "layer":
            state |= {name: value, **{name.replace(".0.", f".{n}."): value for n in rng.choice((range(9), [10**9]))}}
        elif way != "remove":
            made = {"shape": _reshaped, "type": _retyped, "values": _revalued, "other": lambda r, x: odd_value(r)}[way]
            state[name] = made(rng, value)
        done.append(f"{way} {name}")
    return ", ".join(done)[:300], state


def _renamed(rng: random.Random, name: str) -> Any:
    parts = name.split(".")
    parts[rng.randrange(len(parts))] = rng.choice(("", "0", "99999999999999999999", "\ud7ff", "x", "-1", "٣"))
    return rng.choice((".".join(parts), name * 50, "module." + name, name + "\0"))


def _reshaped(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    shape = rng.choice(
        ((), (0,), (1,), (0, 7), (3, 0, 2), (1,) * 9, (2, 2), (9,), (600, 600), (70_000,), (101, 4), (4, 1))
    )
    ways: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: torch.zeros(shape, dtype=value.dtype),
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.flatten()[: rng.randrange(value.numel() + 1)].clone(),
        lambda: value.expand(rng.choice((2, 1000, 10**6)), *value.shape),
        lambda: torch.cat([value.flatten()] * 2),
        lambda: value.new_zeros([rng.choice((1, 2, 64, 65)) for _ in value.shape]),
    )
    return rng.choice(ways)()


def _retyped(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
    return value.to(rng.choice((*types, torch.int16, torch.float8_e4m3fn, torch.uint16)))


def _revalued(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    fill = rng.choice((0.0, float("nan"), float("inf"), -3e38, 1e-45))
    if value.numel() and value.is_floating_point():
        value.flatten()[rng.randrange(value.numel())] = fill
        return value if rng.random() < 0.5 else torch.full_like(value, fill)
    return torch.ones_like(value)


# --- safetensors ------------------------------------------------------------------------------------------------------


def parted(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the numbers of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(rng: random.Random, header: bytes, data: bytes) -> bytes:
    size = (
        len(header) if rng.random() < 0.95 else rng.choice((0, 1, len(header) - 1, 2**31, 2**40 - 1, 2**63, 2**64 - 1))
    )
    return size.to_bytes(8, "little") + header + data


def safetensors(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        way = rng.choice(("header", "m2f", "m2f", "m2f", "bytes", "tensors"))
        path = folder / rng.choice(("a.safetensors", "a.bin"))
        if way == "tensors":
            done, content = _as_safetensors(rng)
        elif way == "bytes":
            done, content = spoil_bytes(rng, ours())
        else:
            done, content = with_other_header(rng, way)
        path.write_bytes(content)
        yield f"{way}: {done}", path


def with_other_header(rng: random.Random, way: str) -> tuple[str, bytes]:
    header, data = parted(ours())
    if way == "header":
        few = dict(rng.sample(sorted(header.items()), 3)) if rng.random() < 0.3 else header
        done, text = spoil_json(rng, few)
    else:
        done, inner = spoil_json(rng, json.loads(header["__metadata__"]["m2f"]))
        header["__metadata__"]["m2f"] = inner.decode("utf-8", "replace")
        text = json_bytes(header)
    return done, joined(rng, text, data)


def _as_safetensors(rng: random.Random) -> tuple[str, bytes]:
    done, state = spoil_state(rng, foreign(rng.random() < 0.5))
    kept = {str(k).encode("utf-8", "replace").decode(): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    whole = {name: tensor.contiguous().clone() for name, tensor in kept.items() if tensor.numel() < 10**6}
    return done, to_safetensors(whole, {"format": "pt"})


# --- pickles ----------------------------------------------------------------------------------------------------------


def tree_around(rng: random.Random, state: dict[Any, Any]) -> Any:
    """Return what a training of some kind would keep around its weights."""
    meta = {"dataset_meta": {"classes": ("a", "b", "c", "d")}, "epoch": 3}
    trees: tuple[Any, ...] = (
        state,
        {"model": state, "iteration": 5, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}},
        {"state_dict": state, "meta": meta},
        {"model": {"module": state}, "ema_state_dict": state},
        {"model": state, "__author__": "x", "matching_heuristics": True},
    )
    tree = rng.choice(trees)
    if rng.random() < 0.1:
        return rng.choice(
            ([state], (state,), state.get("x"), {"model": {}}, {"model": [state]}, {"state_dict": {"model": 3}})
        )
    if rng.random() < 0.1:
        return {**tree, "meta": spoil_tree(rng, meta)[1]}
    return tree


def saved(tree: Any, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def torch_zip(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done, content = _pickled(rng, lambda tree: saved(tree, zipped=True))
        way = rng.choice(("tree", "pickle", "pickle", "members", "bytes"))
        if way == "bytes":
            more, content = spoil_bytes(rng, content)
        elif way != "tree":
            more, content = _rezipped(rng, content, way)
        else:
            more = ""
        path = folder / rng.choice(("a.pth", "a.pt", "a.bin"))
        path.write_bytes(content)
        yield f"{way}: {done} {more}", path


def _pickled(rng: random.Random, save: Callable[[Any], bytes]) -> tuple[str, bytes]:
    """Return a saved state: whole and good, spoiled, or of two tensors, of which every byte is structure."""
    whole = foreign(rng.random() < 0.5)
    kind = rng.choice(("good", "spoiled", "spoiled", "small"))
    done, state = spoil_state(rng, whole) if kind == "spoiled" else (kind, whole)
    state = dict(list(state.items())[:2]) if kind == "small" else state
    return saved_or(save, done, tree_around(rng, state), whole)


def saved_or(save: Callable[[Any], bytes], done: str, tree: Any, good: Any) -> tuple[str, bytes]:
    """Return `done` and the saved tree; what cannot be saved is no file, and a good one takes its place."""
    try:
        return done, save(tree)
    except (UnicodeError, RecursionError, TypeError):
        return "good", save(good)


def _rezipped(rng: random.Random, content: bytes, way: str) -> tuple[str, bytes]:
    """Write the members of a zip anew, with right sums of other content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    if way == "pickle":
        done, members[name] = spoil_bytes(rng, members[name])
    else:
        name = rng.choice(list(members))
        done = rng.choice(("remove", "longer", "shorter", "rename", "big", "constants", "npy", "twice"))
        value = members.pop(name)
        made: dict[str, dict[str, bytes]] = {
            "longer": {name: value + bytes(rng.choice((1, 4, 4096)))},
            "shorter": {name: value[: len(value) // 2]},
            "rename": {rng.choice(("x", "../x", name + "/x", name.replace("archive", "b"))): value},
            "big": {name: value, name.rpartition("/")[0] + "/byteorder": b"big"},
            "constants": {name: value, "archive/constants.pkl": b"x"},
            "npy": {name: value, "arr_0.npy": b"\x93NUMPY"},
            "twice": {name: value, "b/data.pkl": value},
        }
        members |= made.get(done, {})
    file = io.BytesIO()
    packed = rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(file, "w", packed) as archive:
        for each, value in members.items():
            archive.writestr(each, value)
    return f"{done} {name}", file.getvalue()


def torch_legacy(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done, content = _pickled(rng, lambda tree: saved(tree, zipped=False))
        more, content = ("", content) if rng.random() < 0.2 else spoil_bytes(rng, content)
        path = folder / "a.pth"
        path.write_bytes(content)
        yield f"{done} {more}", path


def detectron2_pickle(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)

    def save(tree: Any) -> bytes:
        return pickle.dumps(_as_arrays(rng, tree), rng.choice((0, 1, 2, 2, 2, 3, 4, 5)))

    while True:
        done, content = _pickled(rng, save)
        more, content = ("", content) if rng.random() < 0.2 else spoil_bytes(rng, content)
        if rng.random() < 0.05:
            file = io.BytesIO()
            np.savez(file, a=np.zeros(3), b=np.ones((2, 2)))
            done, content = "npz", file.getvalue()
        path = folder / "a.pkl"
        path.write_bytes(content)
        yield f"{done} {more}", path


def _as_arrays(rng: random.Random, tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        if tree.dtype in (torch.bfloat16, torch.float8_e4m3fn) or tree.numel() > 10**6:
            return None
        array = tree.numpy()
        chance = rng.random()
        return (
            array.astype(array.dtype.newbyteorder(">"))
            if chance < 0.01
            else array.astype("O")
            if chance < 0.002
            else array
        )
    if isinstance(tree, dict):
        kind = OrderedDict if rng.random() < 0.3 else dict
        return kind((key, _as_arrays(rng, value)) for key, value in tree.items())
    return tree


def load(path: Path) -> object:
    """Load a network, as every command does."""
    return load_model(path)


def backbone_alone(rng: random.Random, folder: Path) -> Mutants:
    """ImageNet weights of a backbone without a network around it."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "backbone."
    while True:
        swin = rng.random() < 0.5
        names = {name.removeprefix(prefix): x for name, x in foreign(swin).items() if name.startswith(prefix)}
        done, state = spoil_state(rng, names) if rng.random() < 0.8 else ("good", names)
        path = folder / ("swin.pth" if swin else "resnet.pth")
        save = functools.partial(saved, zipped=rng.random() < 0.5)
        done, content = saved_or(save, done, {"model": state} if rng.random() < 0.5 else state, names)
        path.write_bytes(content if rng.random() < 0.7 else spoil_bytes(rng, content)[1])
        yield done, path


def load_backbone(path: Path) -> object:
    model = config_of(None if path.name.startswith("swin") else RESNET).model
    network = build(model, len(CATEGORIES))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    options = {**model.backbone.options, "pretrained": str(path)}
    return pretrained.load_backbone(Component(name=model.backbone.name, **options), shapes, resize_windows=True)


# --- folders of transformers ------------------------------------------------------------------------------------------


@functools.cache
def huggingface_files(name: str) -> dict[str, bytes]:
    """The files of a folder of transformers with a tiny network."""
    from weights.test_maskformer import tiny

    config = {"swin": config_of, "resnet": lambda: config_of(RESNET), "maskformer": lambda: tiny("fpn")}[name]()
    with tempfile.TemporaryDirectory() as folder:
        path = write_folder(Path(folder, "a"), network_of(config).state_dict(), config, CATEGORIES)
        return {each.name: each.read_bytes() for each in path.iterdir()}


def huggingface(rng: random.Random, folder: Path) -> Mutants:
    while True:
        files = dict(huggingface_files(rng.choice(("swin", "resnet", "maskformer"))))
        if rng.random() < 0.25:
            files = _sharded(files)
        names = [name for name in files if name.endswith(".json")]
        name = rng.choice([*names, "config.json", "config.json", "model.safetensors"])
        if name.endswith(".json"):
            done, files[name] = spoil_json(rng, json.loads(files[name]))
        elif name in files:
            done, files[name] = spoil_bytes(rng, files[name])
        else:
            done = "nothing"
        if rng.random() < 0.05:
            del files[rng.choice(list(files))]
        shutil.rmtree(folder / "repo", ignore_errors=True)
        (folder / "repo").mkdir(parents=True)
        for each, content in files.items():
            (folder / "repo" / each).write_bytes(content)
        yield f"{name}: {done}", folder / "repo"


def _sharded(files: dict[str, bytes]) -> dict[str, bytes]:
    header, data = parted(files["model.safetensors"])
    header.pop("__metadata__", None)
    weight_map, shards = {}, {}
    for number in range(2):
        name = f"model-{number + 1:05}-of-00002.safetensors"
        part = {key: value for index, (key, value) in enumerate(header.items()) if index % 2 == number}
        weight_map |= dict.fromkeys(part, name)
        at, whole = 0, []
        for value in part.values():
            first, last = value["data_offsets"]
            whole.append(data[first:last])
            value["data_offsets"] = [at, at + last - first]
            at += last - first
        text = json.dumps(part).encode()
        shards[name] = len(text).to_bytes(8, "little") + text + b"".join(whole)
    index = json.dumps({"metadata": {"total_size": len(data)}, "weight_map": weight_map}).encode()
    return {
        **{name: content for name, content in files.items() if name != "model.safetensors"},
        **shards,
        "model.safetensors.index.json": index,
    }


TARGETS = (
    Target("safetensors", safetensors, load, share=0.06),
    Target("torch zip", torch_zip, load, share=0.06),
    Target("torch legacy", torch_legacy, load, share=0.04),
    Target("detectron2 pickle", detectron2_pickle, load, share=0.06),
    Target("backbone alone", backbone_alone, load_backbone, share=0.04),
    Target("folder of transformers", huggingface, load, share=0.04),
)

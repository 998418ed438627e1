"""Mutants of checkpoints that store only what was trained, with their base, and of kept features of a backbone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzz.checkpoints import joined, load, parted, spoil_state
from fuzz.harness import Target
from fuzz.spoil import json_bytes, odd_value, spoil_bytes, spoil_json
from helpers import over_a_base
from helpers.vits import DINOV2
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from m2f_cli.config.schema import Component
from m2f_cli.model.backbones.vit import Pyramid, TokenEncoder
from m2f_cli.structures.predictions import Tokens
from m2f_cli.training.feature_cache import FeatureCache

Mutants = Iterator[tuple[str, Path]]
REFERENCES: tuple[Any, ...] = (
    *("..", "../..", "/", "", ".", "~", "~nobody-of-this-name", "a.safetensors", "/dev/zero", "/proc/self/environ"),
    *("timm", "a/b", "hf-hub:a/b", "https://host/a.safetensors", "s3://a/b", "coco-panoptic-r50", "R-50", "pipe", "\0"),
    *("x" * 5000, "/" + "a/" * 3000, "\\\\host\\share\\a", "\ud800"),
)
MODELS = ("resnet50", "beit_base_patch16_224", "hf-hub:a/b", "local-dir:.", "vit_base_patch16_dinov3", "nothing", 3)
OPTIONS = (
    *("checkpoint_path", "cache_dir", "pretrained_cfg", "depth", "embed_dim", "num_heads", "img_size", "mlp_ratio"),
    *("reg_tokens", "num_classes", "norm_layer", "drop_path", "in_chans", "device", "init_values", "dim"),
)


@functools.cache
def sample() -> tuple[bytes, bytes]:
    """Return the checkpoint and its base."""
    with tempfile.TemporaryDirectory() as folder:
        path = over_a_base.write(Path(folder))
        return path.read_bytes(), (path.parent / over_a_base.BASE).read_bytes()


def checkpoints(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        shutil.rmtree(folder / "run", ignore_errors=True)
        (folder / "run").mkdir()
        path, base = folder / "run" / "a.safetensors", folder / "run" / "base.safetensors"
        content, of_base = sample()
        way = rng.choice(("header", "reference", "network", "network", "tensors", "changes", "base"))
        done, made = _with_other_base(rng, of_base) if way == "base" else _changed(rng, way, content, folder)
        path.write_bytes(content if way == "base" else made)
        if way == "base":
            base.write_bytes(made)
        elif rng.random() < 0.03:
            _no_file(rng, base)
        elif way != "reference":
            base.write_bytes(of_base)
        yield f"{way}: {done}", path


def _changed(rng: random.Random, way: str, content: bytes, folder: Path) -> tuple[str, bytes]:
    header, data = parted(content)
    if way in ("tensors", "changes"):
        done, state = _other_tensors(rng, way, tensors_of(content))
        return done, bytes_of(state, header["__metadata__"])
    tree = json.loads(header["__metadata__"]["m2f"])
    text = None
    if way == "reference":
        tree["base"]["reference"] = rng.choice((*REFERENCES, str(folder / "run" / "a.safetensors"), odd_value(rng)))
        tree["base"]["kind"] = rng.choice(("pretrained", "init", "init"))
        done = f"{tree['base']['reference']!r}"[:60]
    elif way == "network":
        backbone = tree["config"]["model"]["backbone"]
        name = rng.choice(("model", "lora", *OPTIONS))
        if name == "lora" and rng.random() < 0.7:
            name, backbone = rng.choice(("rank", "alpha", "targets")), backbone["lora"]
        is_model = name == "model"
        backbone[name] = rng.choice(MODELS) if is_model else odd_value(rng, backbone.get(name))
        done = f"{name} {str(backbone[name])[:60]}"
    else:
        done, text = spoil_json(rng, tree if rng.random() < 0.4 else {**tree, "base": _few(rng, tree["base"])})
    header["__metadata__"]["m2f"] = json.dumps(tree) if text is None else text.decode("utf-8", "replace")
    return done, joined(rng, json_bytes(header), data)


def _few(rng: random.Random, base: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a base with few shapes, so that the rest of it is spoiled as often as they are."""
    return {**base, "shapes": dict(rng.sample(sorted(base["shapes"].items()), 2))} if rng.random() < 0.8 else base


def _other_tensors(rng: random.Random, way: str, state: dict[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    mark = ".parametrizations." if way == "changes" else ""
    chosen = {name: x for name, x in state.items() if mark in name}
    done, spoiled = spoil_state(rng, chosen)
    if way == "changes" and rng.random() < 0.2:
        done, rows = "a huge product", rng.choice((1000, 100_000, 400_000))
        a, b = torch.zeros(rng.choice((1, 2)), 1, rows), torch.zeros(rng.choice((1, 2)), rows, 1)
        spoiled = {**chosen, over_a_base.CHANGE + "A": a, over_a_base.CHANGE + "B": b}
    return done, whole({name: x for name, x in state.items() if name not in chosen} | spoiled)


def whole(state: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Return what safetensors can hold of spoiled tensors."""
    named = {str(name).encode("utf-8", "replace").decode(): x for name, x in state.items()}
    return {name: x.contiguous().clone() for name, x in named.items() if _is_writable(x)}


def _is_writable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() < 10**6


def _with_other_base(rng: random.Random, base: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.3:
        return spoil_bytes(rng, base)
    if rng.random() < 0.2:
        return "the checkpoint itself", sample()[0]
    done, state = spoil_state(rng, tensors_of(base))
    return done, bytes_of(whole(state))


def _no_file(rng: random.Random, path: Path) -> None:
    """Put something in the place of a file that is none."""
    way = rng.choice(("pipe", "folder", "link", "device"))
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if way == "link" else "/dev/zero")


def load_offline(path: Path) -> object:
    """Load a network; a server that is asked would be a hang."""
    with mock.patch.dict("os.environ", {"M2F_OFFLINE": "1"}):
        return load(path)


# --- kept features ----------------------------------------------------------------------------------------------------


@functools.cache
def backbones() -> dict[str, tuple[Component, torch.nn.Module]]:
    torch.manual_seed(0)
    tiny = {"model": DINOV2, "img_size": 64, "embed_dim": 36, "num_heads": 3, "depth": 2}
    made = {"tokens": TokenEncoder(**tiny, levels=[0, 1]), "maps": Pyramid(**tiny)}
    return {name: (Component(name=name, **tiny), backbone.eval()) for name, backbone in made.items()}


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(rng: random.Random, folder: Path) -> Mutants:
    for kind, (component, backbone) in backbones().items():
        FeatureCache(folder / "good" / kind, component)(backbone, images())
    while True:
        kind = rng.choice(("tokens", "maps"))
        place = folder / kind
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "good" / kind, place)
        path = rng.choice(sorted(place.iterdir()))
        content = path.read_bytes()
        if rng.random() < 0.05:
            path.unlink()
            _no_file(rng, path)
            done = "no file"
        elif rng.random() < 0.2:
            done, content = spoil_bytes(rng, content)
            path.write_bytes(content)
        else:
            done, content = _other_features(rng, content[32:])
            path.write_bytes(hashlib.sha256(content).digest() + content)
        yield f"{kind}: {done}", place


def _other_features(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.2:
        header, data = parted(content)
        done, text = spoil_json(rng, header)
        return done, joined(rng, text, data)
    state = tensors_of(content)
    if rng.random() < 0.2 and "tokens" in state:
        state["tokens"] = torch.tensor(
            rng.choice(([5, 4], [5, 4, 2**62], [-1, 4, 4], [0, 5, 4], 3, [2**63 - 1] * 3, []))
        )
        return "grid", bytes_of(whole(state))
    done, state = spoil_state(rng, state)
    return done, bytes_of(whole(state))


@torch.no_grad()
def read_features(path: Path) -> None:
    """Ask for the features of two images; their shapes are right, whatever is in the files."""
    component, backbone = backbones()[path.name]
    found, expected = FeatureCache(path, component)(backbone, images()), backbone(images())
    levels = (found.levels, expected.levels) if isinstance(expected, Tokens) else (found.values(), expected.values())
    for ours, theirs in zip(*map(list, levels), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and bool(ours.isfinite().all())


TARGETS = (
    Target("checkpoint over a base", checkpoints, load_offline, share=0.06),
    Target("kept features", features, read_features, share=0.06),
)

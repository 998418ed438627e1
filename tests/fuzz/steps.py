"""Mutated configurations up to a step of training and a prediction: what is accepted must also compute."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.harness import Target
from fuzz.spoil import places
from helpers.vits import pmt_config

from m2f_cli.config import presets
from m2f_cli.inference.load import ModelOptions, open_model
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.prepare import Listener
from m2f_cli.training.run import start

SWIN = {"name": "swin", "embed_dim": 16, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 4, "drop_path": 0.1}
RESNET = {"name": "resnet", "depth": 18, "stem": "basic", "norm": "bn", "stem_channels": 8, "width": 8}
HEADS = {"num_heads": 4, "ffn_dim": 32}
DEFORMABLE = {"name": "deformable", "dim": 32, "mask_dim": 32, "num_layers": 1, "num_points": 2, **HEADS}
FAPN = {"name": "fapn", "dim": 32, "mask_dim": 32, "groups": 4}
TRANSFORMER = {"name": "transformer_fpn", "dim": 32, "mask_dim": 16, "num_layers": 1, "dropout": 0.1, **HEADS}
MASKED = {"name": "masked", "dim": 32, "num_queries": 6, "num_layers": 2, **HEADS}
PLAIN = {"name": "plain", "dim": 32, "num_queries": 6, "num_layers": 2, "dropout": 0.1, **HEADS}
NETWORKS = {  # method, backbone, pixel decoder, decoder
    "resnet": ("mask2former", RESNET, DEFORMABLE, MASKED),
    "swin": ("mpformer", SWIN, FAPN, MASKED),
    "maskformer": ("maskformer", RESNET, TRANSFORMER, PLAIN),
    "per-pixel": ("maskformer", SWIN, TRANSFORMER, {"name": "per_pixel"}),
    "pmt": ("pmt", *(getattr(pmt_config(), part).model_dump() for part in ("backbone", "pixel_decoder", "decoder"))),
}
PARTS = (
    *(("model", part) for part in ("method", "backbone", "pixel_decoder", "decoder", "piloting")),
    ("train", "loss"),
)
PER_PIXEL = {"masks": "per_pixel", "class_weight": 1.0, "mask_weight": 0.0, "dice_weight": 0.0, "no_object_weight": 0.1}
STEPS = [
    {"name": "large_scale_jitter", "size": 64, "min_scale": 0.5, "max_scale": 2.0},
    {"name": "crop", "height": 64, "width": 64, "category_max_area": 0.75},
    {"name": "pad", "size": 64, "value": "mean"},
]
ODD: tuple[Any, ...] = (
    *(0, 1, 2, 3, 5, 7, 16, 31, 33, 64, 255, 1000, -1, 0.0, 1e-300, 0.1, 0.5, 0.999, 1.5, 99.0, 1e6, 1e30, 1e39),
    *(True, None, "", "x", "1", "mean", "full", "step", "cosine", "opencv", [], {}, [1], [2, 1], [0.5, 0.5], [1] * 4),
)


@functools.cache
def sample(name: str) -> str:
    """A whole configuration as JSON: a network of a few thousand numbers, and one step of training."""
    tree = presets.load("tiny").model_dump(mode="json")
    tree["model"] |= dict(zip(("method", "backbone", "pixel_decoder", "decoder"), NETWORKS[name], strict=True))
    tree["model"]["piloting"] = {"groups": 2, "mask_noise": 0.1} if name == "swin" else None
    tree["data"]["scenes"] |= {"train": 4, "val": 1, "size": [64, 64]}
    tree["test"]["resize"], tree["test"]["tta"] = {"fit": 64}, {"scales": [0.5, 1.0], "of": "picture"}
    changes = {"iterations": 1, "batch": 2, "augment": STEPS, "eval_every": 1, "group_by_aspect": True}
    tree["train"] |= changes | ({"loss": PER_PIXEL} if name == "per-pixel" else {})
    return json.dumps(tree)


def mutants(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    path = folder / "changed.yaml"
    while True:
        name = rng.choice(list(NETWORKS))
        tree, done = json.loads(sample(name)), []
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.3:
                (above, part), other = rng.choice(PARTS), rng.choice(list(NETWORKS))
                tree[above][part] = json.loads(sample(other))[above][part]
                done.append(f"{part} of {other}")
            else:
                place = rng.choice([each for each in places(tree) if each[0] in ("model", "train", "test", "input")])
                value = copy.deepcopy(rng.choice(ODD))
                functools.reduce(lambda node, key: node[key], place[:-1], tree)[place[-1]] = value
                done.append(f"{'.'.join(map(str, place))} = {value!r}")
        path.write_text(json.dumps(tree))
        yield f"{name}: {', '.join(done)}", path


class Enough(BaseException):
    """End of a training that is longer than a few steps."""


def use(path: Path) -> None:
    """Train for a step or two, evaluate, and predict with the weights."""
    settings, out, seen = presets.load(path), path.with_name("run"), []
    shutil.rmtree(out, ignore_errors=True)

    def on_step(step: Any) -> None:
        seen.append(step)
        if len(seen) > 1:
            raise Enough

    with contextlib.suppress(Enough):
        start(settings, out, TrainOptions(init="random", device="cpu", workers=0), Listener(on_step=on_step))
    last = out / "checkpoints" / "last.safetensors"
    if last.is_file():
        segmenter = open_model(ModelOptions(str(last), device="cpu", tta=settings.test.tta is not None))
        segmenter.finish(segmenter.infer([segmenter.prepare(np.full((41, 63, 3), 99, np.uint8))])[0])


TARGETS = [Target("config steps", mutants, use, ".", share=0.25)]

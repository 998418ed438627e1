"""One of several processes that train the same run in several ways: torchrun shard_worker.py FOLDER"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.test_lora import LORA, config_of
from training.tiny import settings

from m2f_cli.config.schema import Config, ModelConfig
from m2f_cli.runtime import distributed
from m2f_cli.training import run

AVERAGED = settings("train.ema_decay=0.9", "train.eval_every=3", "train.batch=4")
HALF = 3


def without_chance() -> Config:
    """A training that draws nothing but images: one process and two of them have other random numbers."""
    points = [f"train.loss.{name}=null" for name in ("num_points", "oversample_ratio", "importance_ratio")]
    config = settings("train.batch=2", "train.loss.masks=full", *points)
    network = config.model.model_dump()
    network["backbone"]["drop_path"] = 0.0
    return config.model_copy(update={"model": ModelConfig.model_validate(network)})


def start(folder: Path, *, stop: bool = False, config: Config = AVERAGED, **options) -> None:
    """Train to the end, or for the first steps alone."""
    calls = itertools.count()
    chosen = run.TrainOptions(**{"init": "random", **options}, device="cpu", time_budget=1 if stop else None)
    run.start(config, folder, chosen, clock=lambda: 0 if next(calls) < HALF + 2 else 1e9)


def copy(source: Path, target: Path) -> Path:
    with distributed.group(torch.device("cpu")):
        distributed.on_main(lambda: shutil.copytree(source, target))
    return target


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    start(root / "two processes", config=without_chance())
    start(root / "whole")
    start(root / "shared", shard=True)
    start(root / "half", stop=True, shard=True)
    start(copy(root / "half", root / "half then shared"), shard=True, resume=True)
    start(copy(root / "half", root / "half then whole"), resume=True)
    start(root / "whole then shared", stop=True)
    start(root / "whole then shared", shard=True, resume=True)
    frozen = {"freeze": ("backbone",), "checkpoint_activations": True, "micro_batch": 1, "keep": 1}
    start(root / "frozen", **frozen)
    start(root / "frozen shared", shard=True, **frozen)
    adapted = config_of(root / "dinov2.safetensors", lora=LORA)
    start(root / "lora", config=adapted, init=None)
    start(root / "lora shared", config=adapted, init=None, shard=True)


if __name__ == "__main__":
    main()

"""Does reading and augmenting images keep up with training? Images per second of the loader alone, and of the step.

    python benchmarks/data_loading.py --preset coco-panoptic-swin-t --data DIR [--workers 1] [--pictures 40]

The loader is that of `m2f train`: decode, augment as the preset says, targets, batch, normalise. The step is forward,
losses, backward, clipping and AdamW of the preset's network from random numbers, on one image at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from m2f_cli.benchmark import machine as about
from m2f_cli.config import presets as config
from m2f_cli.data.loader import Loader
from m2f_cli.training import loop, run


def images_per_second(loader: Loader, count: int = 20) -> float:
    """Return how fast the loader alone is, over `count` batches; those that fill the queue do not count."""
    made = iter(loader)
    for _ in range(2 * loader.workers + 1):
        next(made)
    begin = time.perf_counter()
    images = sum(len(next(made)) for _ in range(count))
    return images / (time.perf_counter() - begin)


def steps_per_second(prepared: run.Run, rounds: int) -> float:
    """Median over rounds of images per second, on batches that are in memory already."""
    loop.train_mode(prepared.parts.model)
    seconds = []
    for batch in list(itertools.islice(prepared.loader, rounds + 1)):
        began = time.perf_counter()
        loop.train_step(prepared.parts, [batch])
        prepared.parts.optimizer.step()
        seconds.append((time.perf_counter() - began) / len(batch.names))
    return 1 / statistics.median(seconds[1:])  # the first one makes what is kept by shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="coco-panoptic-swin-t")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = config.load(arguments.preset, ["train.precision=fp32", "train.batch=1"])
    found = {}
    for workers in sorted({0, arguments.workers}):
        options = run.TrainOptions(data=arguments.data, init="random", workers=workers, micro_batch=1)
        with tempfile.TemporaryDirectory() as folder:
            prepared = run.prepare(settings, Path(folder), options, torch.device("cpu"), run.Listener())
            found[f"loader, {workers or 'no'} workers"] = images_per_second(prepared.loader, arguments.images)
            if workers == 0:
                found["training step"] = steps_per_second(prepared, arguments.rounds)
    print(f"{about.cpu_name()}, {arguments.threads} threads, {about.allocator()['name']}, load {about.load_average()}")
    for name, value in found.items():
        print(f"{name:24} {value:8.2f} pictures/s")
    print(json.dumps({"preset": arguments.preset, "threads": arguments.threads, **found}))


if __name__ == "__main__":
    main()

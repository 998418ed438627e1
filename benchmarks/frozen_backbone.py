"""Training over a frozen ViT on a CPU: steps per second with and without kept features, and memory; one machine.

    python benchmarks/frozen_backbone.py [--vit small] [--size 320] [--batch 2] [--images 8] [--rounds 2] [--sides …]

A side is a network, and how it is trained. "pmt" is the preset pmt-coco-panoptic-s-640 (or b, l), whose encoder is
always frozen; "fast" is Mask2Former with the FPN of three levels and 3 decoder layers over the ViT; "small" has the
width of the preset fast-small-panoptic there. Then "full", "lora" (rank 16), "frozen" or "cached" (frozen, with
--cache-features). Each runs in a process of its own with one thread, from random numbers, on generated images of one
size. Rates are of the epochs after the first one, without the time that waits for data, in seconds of the clock and of
the CPU: on a machine that does other things only the latter mean anything. Memory is what the steps add to the process:
its peak against what it held before the first step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = (
    "pmt:frozen",
    "pmt:cached",
    "fast:full",
    "fast:lora",
    "fast:frozen",
    "fast:cached",
    "small:full",
    "small:frozen",
    "small:cached",
)


def config_of(side: str, vit: str, size: int, batch: int, images: int, epochs: int):
    from m2f_cli.config import presets as config
    from m2f_cli.config.schema import ModelConfig

    network, kind = side.split(":")
    base = config.load(
        "small-panoptic",
        [
            f"train.iterations={epochs * images // batch}",
            f"train.batch={batch}",
            "train.augment=[]",
            "train.precision=fp32",
            "train.eval_every=0",
            "train.group_by_aspect=false",
            "train.drop_empty=false",
            f"train.checkpoint_every={10**6}",
        ],
    )
    if network == "pmt":
        preset = config.load(f"pmt-coco-panoptic-{vit[0]}-640", [f"model.backbone.img_size={size}"])
        tree = preset.model.model_dump(exclude_none=True)
    else:
        like = "fast-coco-panoptic-r50" if network == "fast" else "fast-small-panoptic"
        tree = config.load(like, ["model.decoder.num_layers=3"]).model.model_dump(exclude_none=True)
        tree["backbone"] = {"name": "vit", "model": f"vit_{vit}_patch14_reg4_dinov2", "img_size": size}
        tree["backbone"]["dim"] = tree["pixel_decoder"]["dim"]
    if kind == "lora":
        tree["backbone"]["lora"] = {"rank": 16}
    return base.model_copy(update={"model": ModelConfig.model_validate(tree)})


def resident(key: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def measure(side: str, vit: str, size: int, batch: int, images: int, epochs: int) -> dict[str, float]:
    import torch

    from m2f_cli.data.synthetic.dataset import synthetic_dataset
    from m2f_cli.training import run
    from m2f_cli.training.options import TrainOptions
    from m2f_cli.training.run import Listener

    torch.set_num_threads(1)
    data = synthetic_dataset("train", images, size=(size, size))
    seconds, cpu, held, peaks, fetched = [], [], [], [], []

    class Batches:
        """Batches that say at what CPU time they were there."""

        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            for fetched_batch in self.loader:
                fetched.append(time.process_time())
                yield fetched_batch

    def on_start(made):
        made.loader = Batches(made.loader)
        held.append(resident("VmRSS"))

    def on_step(step):
        seconds.append(step.seconds - step.data_seconds)
        cpu.append(time.process_time() - fetched[-1])
        peaks.append(resident("VmHWM"))

    listener = Listener(on_start=on_start, on_step=on_step)
    with tempfile.TemporaryDirectory() as folder:
        kind = side.split(":")[1]
        options = TrainOptions(
            init="random",
            device="cpu",
            micro_batch=batch,
            freeze=("backbone",) if kind in ("frozen", "cached") and not side.startswith("pmt") else (),
            cache_features=Path(folder, "features") if kind == "cached" else None,
        )
        config = config_of(side, vit, size, batch, images, epochs)
        run.start(config, Path(folder, "run"), options, listener, data=(data, None))
        files = list(Path(folder, "features").glob("*.features"))
        per_image = sum(path.stat().st_size for path in files) / max(1, len(files))
    later = slice(images // batch, None)
    return {
        "step": statistics.median(seconds[later]),
        "cpu": statistics.median(cpu[later]),
        "memory": max(peaks) - held[0],
        "features": per_image,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    for name, default in (("size", 320), ("batch", 2), ("images", 8), ("epochs", 3), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vit", default="small", choices=("small", "base", "large"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("vit", "size", "batch", "images", "epochs")}
    if options.one:
        return print(json.dumps(measure(options.one, **given)))
    found: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    for _ in range(options.rounds):
        for side in options.sides:
            command = [sys.executable, __file__, "--one", side, *words]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'side':12} {'steps/s':>8} {'steps/CPU s':>12} {'memory MB':>10} {'MB an image':>12}")
    for side, results in found.items():
        best = {key: min(result[key] for result in results) for key in results[0]}
        rates = f"{1 / best['step']:8.2f} {1 / best['cpu']:12.2f}"
        print(f"{side:12} {rates} {best['memory'] / 1e6:10.0f} {best['features'] / 1e6:12.2f}")


if __name__ == "__main__":
    main()

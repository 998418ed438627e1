"""What three kinds of networks learn from small real data sets with the same budget, as commands of m2f.

    python benchmarks/networks.py camvid --data DIR [--weights FILE] [--out runs/networks] [--threads 1]

trains and evaluates Mask2Former over ResNet-18, the same without deformable attention ("fast"), and EoMT of the size of
ViT-S: the same images, crops, batches, steps, losses and schedule. The ResNets start from FILE (ImageNet, or a part of
it) with frozen early stages, EoMT from random numbers, as does a fourth training: Mask2Former. DIR is the data set
(camvid: the SegNet split; nuclei: Data Science Bowl 2018 as COCO instances). Runs that are complete are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

EARLY = ("--freeze", "backbone.stem", "--freeze", "backbone.stages.0", "--freeze", "backbone.stages.1")
EOMT = (
    "model={method: eomt, backbone: {name: vit_tokens, model: vit_small_patch14_reg4_dinov2, img_size: 256,"
    " levels: [8]}, pixel_decoder: {name: tokens}, decoder: {name: eomt, num_queries: 50, anneal_power: 0.9,"
    " model: vit_small_patch14_reg4_dinov2, first_block: 9, num_blocks: 3,"
    " anneal: [[0.17, 0.33], [0.42, 0.58], [0.67, 0.83]]}}"
)
FPN = "model.pixel_decoder={name: fpn, dim: 128, mask_dim: 128, num_levels: 3}"
FROM_NOTHING = ("--set", "train.optimizer.backbone_multiplier=1.0")
NETWORKS = {
    "mask2former": (),
    "fast": ("--set", FPN),
    "eomt": ("--set", EOMT, *FROM_NOTHING, "--set", "train.optimizer.learning_rate=0.0005"),
    "mask2former-random": FROM_NOTHING,
}
PRETRAINED = ("mask2former", "fast")
CROPS = (
    "train.augment=[{name: resize_choice, short_edges: [256, 288, 320, 352, 384], max_edge: 768},"
    " {name: crop, height: 128, width: 128, category_max_area: 1.0}, {name: flip, p: 0.5}]"
)
TILES = ("--set", "test.resize.short_edge=128", "--set", "test.resize.max_edge=256")  # a tile has the scale of a crop
NUCLEI = (
    "--set",
    "train.optimizer.learning_rate=0.001",
    "--set",
    "model.decoder.num_queries=60",
    "--set",
    CROPS,
    *TILES,
)
TRAININGS = {
    "camvid": ("--preset", "small-semantic", "--batch", "4", "--micro-batch", "4"),
    "nuclei": ("--preset", "small-instance", "--batch", "8", "--micro-batch", "8", *NUCLEI),
}
EVALUATIONS = {
    "camvid": ("--metric", "miou"),
    "nuclei": ("--metric", "ap", "--tile", "96", "--tile-overlap", "0.3", "--max-dets", "400"),
}
FIGURES = {"camvid": ("miou", "pacc"), "nuclei": ("ap", "ap50")}


def call(*words: str) -> float:
    """Run a command of m2f and return its seconds of CPU time."""
    print("m2f", shlex.join(words), flush=True)
    before = os.times()
    subprocess.run([sys.executable, "-m", "m2f_cli", *words], check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRAININGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="torchvision", help="a file of ResNet-18, or of its first stages")
    parser.add_argument("--out", type=Path, default=Path("runs/networks"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    given = parser.parse_args()
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(given.threads)
    steps = ("--set", f"train.iterations={given.steps}", "--set", "train.eval_every=0", "--seed", str(given.seed))
    for network in given.networks:
        run = given.out / f"{given.name}-{network}"
        is_pretrained = network in PRETRAINED
        start = ("--init", given.weights, "--init-partial", *EARLY) if is_pretrained else ("--init", "random")
        if not (run / "results.json").is_file():
            options = (*TRAININGS[given.name], *NETWORKS[network], *start, *steps, "--data", str(given.data))
            seconds = call("train", *options, "--workers", "0", "--out", str(run))
            (run / "cpu_seconds").write_text(f"{seconds:.0f}\n")
        if not (run / "eval" / "results.json").is_file():
            call("eval", "--model", str(run), *EVALUATIONS[given.name], "--out", str(run / "eval"))
        figures = json.loads((run / "eval" / "results.json").read_text())["figures"]
        told = ", ".join(f"{name} {figures[name]:.1f}" for name in FIGURES[given.name])
        print(f"{time.strftime('%H:%M')} {run.name}: {told}, {(run / 'cpu_seconds').read_text().strip()} s of CPU time")


if __name__ == "__main__":
    main()

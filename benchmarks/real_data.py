"""What small models learn from small real data sets: the trainings behind the README's table, as commands of m2f.

    python benchmarks/real_data.py camvid --data DIR [--weights FILE] [--out runs/real] [--threads 1]

prints each command, runs it, and leaves the run and its evaluation below --out. DIR is the data set (camvid: the SegNet
split; nuclei: Data Science Bowl 2018 as COCO instances; coco: COCO panoptic). FILE is an ImageNet ResNet-18,
or a part of one; without it the release of torchvision is fetched. Runs that are complete are not repeated.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

EARLY = ["--freeze", "backbone.stem", "--freeze", "backbone.stages.0", "--freeze", "backbone.stages.1"]
SEMANTIC = [
    "--preset",
    "small-semantic",
    *EARLY,
    "--batch",
    "4",
    "--micro-batch",
    "4",
    "--set",
    "train.iterations=800",
    "--set",
    "train.eval_every=400",
]
# Small crops hold few nuclei, which queries learn to tell apart early; tiles show them at the scale of training.
PLAIN_NUCLEI = [
    "--preset",
    "small-instance",
    *EARLY,
    "--batch",
    "8",
    "--micro-batch",
    "8",
    "--val-pictures",
    "8",
    "--set",
    "train.iterations=500",
    "--set",
    "train.eval_every=250",
    "--set",
    "train.optimizer.learning_rate=0.001",
    "--set",
    "model.decoder.num_queries=60",
    "--set",
    "test.resize.short_edge=128",
    "--set",
    "test.resize.max_edge=256",
    "--set",
    "train.augment=[{name: resize_choice, short_edges: [256, 288, 320, 352, 384], max_edge: 768}, "
    "{name: crop, height: 128, width: 128, category_max_area: 1.0}, {name: flip, p: 0.5}]",
]
NUCLEI = [*PLAIN_NUCLEI, "--set", "model.piloting.groups=1"]
PANOPTIC = [
    "--preset",
    "small-panoptic",
    *EARLY,
    "--batch",
    "4",
    "--micro-batch",
    "4",
    "--set",
    "train.iterations=300",
    "--set",
    "train.eval_every=0",
    "--set",
    "test.object_threshold=0.3",
]
EVALUATIONS = {
    "camvid": [["--metric", "miou,boundary-iou"]],
    "camvid-held-back": [["--metric", "miou,boundary-iou"]],
    "nuclei": [["--metric", "ap", "--tile", "96", "--tile-overlap", "0.3", "--max-dets", "400"]],
    "coco": [["--metric", "pq,pq-errors"], ["--metric", "pq", "--split", "train"]],
    "coco-random": [["--metric", "pq"], ["--metric", "pq", "--split", "train"]],
}
TRAININGS = {
    "camvid": SEMANTIC,
    "camvid-held-back": SEMANTIC,
    "nuclei": NUCLEI,
    "coco": PANOPTIC,
    "coco-random": PANOPTIC,
}


def call(*words: str) -> None:
    print("m2f", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "m2f_cli", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRAININGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", help="a file of ResNet-18, or of its first stages")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(arguments.threads)
    name, data, run = arguments.name, arguments.data, arguments.out / arguments.name
    if name == "camvid-held-back":  # val lies inside a sequence of train; here a whole sequence is held back
        data = arguments.out / "camvid_by_sequence"
        if not data.exists():
            call(
                "data",
                "split",
                str(arguments.data),
                str(data),
                "--group-by",
                "^([^_]+)_",
                "--val-groups",
                "0006R0",
                "--split",
                "train",
                "--split",
                "val",
                "--link",
            )
    start = ["--init", arguments.weights, "--init-partial"] if arguments.weights else []
    start = ["--init", "random"] if name.endswith("random") else start
    if not (run / "results.json").is_file():
        resume = ["--resume"] if (run / "checkpoints").is_dir() else [*TRAININGS[name], *start]
        seed = [] if "--resume" in resume else ["--seed", str(arguments.seed)]
        given = [] if "--resume" in resume else ["--data", str(data)]
        call("train", *resume, *given, *seed, "--workers", "0", "--out", str(run))
    for number, options in enumerate(EVALUATIONS[name]):
        folder = run / f"eval_{number}"
        if not (folder / "results.json").is_file():
            resume = ["--resume"] if folder.is_dir() else []
            call("eval", "--model", str(run), *options, "--out", str(folder), *resume)


if __name__ == "__main__":
    main()

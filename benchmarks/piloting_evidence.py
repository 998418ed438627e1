"""Does piloting help? The same training with and without pilots, several seeds: curves as an image, and a table.

    python benchmarks/piloting_evidence.py --preset tiny --seeds 3 --out runs/piloting/scenes -- --init random \\
        --set train.iterations=240 --set train.eval_every=40
    python benchmarks/piloting_evidence.py --nuclei DIR [--weights FILE] --out runs/piloting/nuclei

What follows -- is handed to `m2f train`. A pair of runs differs in `model.piloting.groups` alone (--pilots changes what
"with pilots" means): same seed, same batches, same budget of steps. Runs that are complete are not repeated.

--nuclei trains as `real_data.py nuclei` does, on crops; whole images say little of such a network, so each third of
the training leaves a checkpoint, which is evaluated in tiles on the first 30 images of val.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from real_data import EVALUATIONS, PLAIN_NUCLEI

SIDES = {"without pilots": "#1f5fbf", "with pilots": "#c23b22"}
FIGURES = {"pq", "ap", "miou"}
WIDTH, HEIGHT, MARGIN = 760, 400, 50
Curve = list[tuple[int, float]]


def nuclei_options(data: str, weights: str | None, iterations: int) -> list[str]:
    start = ["--init", weights, "--init-partial"] if weights else []
    pace = {"iterations": iterations, "eval_every": 0, "checkpoint_every": iterations // 3}
    return [
        *PLAIN_NUCLEI,
        "--data",
        data,
        *start,
        "--keep",
        "3",
        "--workers",
        "0",
        *(f"--set=train.{name}={number}" for name, number in pace.items()),
    ]


def evaluated(run: Path, data: str) -> Curve:
    """AP of each checkpoint of a training on nuclei."""
    points = []
    for checkpoint in sorted(run.glob("checkpoints/iteration_*.safetensors")):
        folder = run / f"eval_{checkpoint.stem}"
        if not (folder / "results.json").is_file():
            options = ["--model", str(checkpoint), "--data", data, "--limit", "30", "--out", str(folder)]
            command = [sys.executable, "-m", "m2f_cli", "eval", *options, *EVALUATIONS["nuclei"][0]]
            subprocess.run(command, check=True)
        figures = json.loads((folder / "results.json").read_text(encoding="utf-8"))["figures"]
        points.append((int(checkpoint.stem.split("_")[1]), figures["ap"]))
    return points


def train(folder: Path, seed: int, extra: list[str]) -> Path:
    """One run, unless it is there already; its metrics.jsonl."""
    if not (folder / "results.json").is_file():
        resume = ["--resume"] if (folder / "checkpoints").is_dir() else ["--seed", str(seed), *extra]
        subprocess.run([sys.executable, "-m", "m2f_cli", "train", "--out", str(folder), *resume], check=True)
    return folder / "metrics.jsonl"


def entries_of(metrics: Path, kind: str) -> list[dict]:
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def curve(metrics: Path, figure: str | None) -> tuple[str, Curve]:
    """The figure's name, and its value after each evaluation."""
    val = {entry["iteration"]: entry for entry in entries_of(metrics, "val")}
    name = figure or next(key for key in next(iter(val.values())) if key in FIGURES)
    return name, [(i, entry.get(name, 0.0)) for i, entry in sorted(val.items())]


def draw(curves: dict[str, list[Curve]], name: str, path: Path) -> None:
    """Thin lines are seeds, thick ones their means."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    points = [point for side in curves.values() for each in side for point in each]
    last, low, high = max(x for x, _ in points), 0.0, max(max(y for _, y in points), 1e-9) * 1.05

    def place(point: tuple[int, float]) -> tuple[float, float]:
        x = MARGIN + point[0] / last * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - (point[1] - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    for share in range(6):
        value = low + (high - low) * share / 5
        y = place((0, value))[1]
        pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], fill="#e4e4e4")
        pen.text((8, y - 8), f"{value:.1f}", fill="gray", font=font)
        pen.text((place((last * share // 5, low))[0] - 10, HEIGHT - MARGIN + 6), str(last * share // 5), "gray", font)
    for number, (side, several) in enumerate(curves.items()):
        for each in several:
            pen.line([place(point) for point in each], fill=SIDES[side], width=1)
        pen.line([place(point) for point in mean_of(several)], fill=SIDES[side], width=4, joint="curve")
        pen.text((MARGIN + 12, MARGIN + 18 * number), f"{side} (mean of {len(several)})", SIDES[side], font)
    pen.text((MARGIN, 12), f"{name} over iterations", fill="black", font=font)
    image.save(path)


def mean_of(several: list[Curve]) -> Curve:
    return [(each[0][0], statistics.fmean(y for _, y in each)) for each in zip(*several, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/piloting/scenes"))
    parser.add_argument("--pilots", nargs="+", default=["model.piloting.groups=1"], metavar="KEY=VALUE")
    parser.add_argument("--figure", help="of the evaluation; default: the task's own")
    parser.add_argument("--nuclei", metavar="DIR", help="Data Science Bowl 2018 as COCO instances")
    parser.add_argument("--weights", help="with --nuclei: a file of ResNet-18, or of its first stages")
    parser.add_argument("--iterations", type=int, default=240, help="with --nuclei")
    parser.add_argument("train", nargs="*", help="options of m2f train, after --")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONHASHSEED", "0")
    options = arguments.train
    if arguments.nuclei:
        options = [*nuclei_options(arguments.nuclei, arguments.weights, arguments.iterations), *options]
    else:
        options = ["--preset", arguments.preset, *options]
    settings = {"without pilots": [], "with pilots": [f"--set={pair}" for pair in arguments.pilots]}
    curves: dict[str, list[Curve]] = {side: [] for side in settings}
    seconds: dict[str, list[float]] = {side: [] for side in settings}
    name = ""
    for seed in range(arguments.seeds):
        for side, extra in settings.items():
            folder = arguments.out / f"{side.replace(' ', '_')}_{seed}"
            metrics = train(folder, seed, [*options, *extra])
            if arguments.nuclei:
                name, found = "ap", evaluated(folder, arguments.nuclei)
            else:
                name, found = curve(metrics, arguments.figure)
            curves[side].append(found)
            seconds[side].append(sum(1 / entry["images_per_second"] for entry in entries_of(metrics, "train")))
    draw(curves, name, arguments.out / "curves.png")
    iterations = [x for x, _ in curves["with pilots"][0]]
    print(f"| {name} after | " + " | ".join(map(str, iterations)) + " | time per image |")
    print("|---" * (len(iterations) + 2) + "|")
    base = statistics.fmean(seconds["without pilots"])
    for side, several in curves.items():
        cells = [
            f"{statistics.fmean(ys):.1f} ({min(ys):.1f} to {max(ys):.1f})"
            for ys in ([y for _, y in each] for each in zip(*several, strict=True))
        ]
        print(f"| {side} | " + " | ".join(cells) + f" | {statistics.fmean(seconds[side]) / base:.2f} |")


if __name__ == "__main__":
    main()

"""Does piloting help? The same training with and without pilots, several seeds: curves as a picture, and a table.

    python benchmarks/piloting_evidence.py --preset tiny --seeds 3 --out runs/piloting/scenes -- --init random \\
        --set train.iterations=300 --set train.eval_every=50
    python benchmarks/piloting_evidence.py --preset small-instance --seeds 3 --out runs/piloting/nuclei -- --data DIR

What follows -- is handed to `m2f train`. A pair of runs differs in `model.piloting.groups` alone (--pilots changes what
"with pilots" means): same seed, same batches, same budget of steps. Runs that are complete are not repeated.
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

SIDES = {"without pilots": "#1f5fbf", "with pilots": "#c23b22"}
FIGURES = {"pq", "ap", "miou"}
WIDTH, HEIGHT, MARGIN = 760, 400, 50
Curve = list[tuple[int, float]]


def train(folder: Path, preset: str, seed: int, extra: list[str]) -> Path:
    """One run, unless it is there already; its metrics.jsonl."""
    if not (folder / "results.json").is_file():
        command = [sys.executable, "-m", "m2f_cli", "train", "--preset", preset, "--seed", str(seed)]
        resume = ["--resume"] if (folder / "checkpoints").is_dir() else []
        subprocess.run([*command, "--out", str(folder), *(resume or extra)], check=True)
    return folder / "metrics.jsonl"


def curve(metrics: Path, figure: str | None) -> tuple[str, Curve, float]:
    """The figure's name, its value after each evaluation, and the seconds that the steps took."""
    entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    val = {entry["iteration"]: entry for entry in entries if entry["kind"] == "val"}
    name = figure or next(key for key in next(iter(val.values())) if key in FIGURES)
    steps = [entry for entry in entries if entry["kind"] == "train"]
    seconds = sum(1 / entry["images_per_second"] for entry in steps)
    return name, [(i, entry.get(name, 0.0)) for i, entry in sorted(val.items())], seconds


def draw(curves: dict[str, list[Curve]], name: str, path: Path) -> None:
    """Thin lines are seeds, thick ones their means."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
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
    picture.save(path)


def mean_of(several: list[Curve]) -> Curve:
    return [(each[0][0], statistics.fmean(y for _, y in each)) for each in zip(*several, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/piloting/scenes"))
    parser.add_argument("--pilots", nargs="+", default=["model.piloting.groups=1"], metavar="KEY=VALUE")
    parser.add_argument("--figure", help="of the evaluation; default: the task's own")
    parser.add_argument("train", nargs="*", help="options of m2f train, after --")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONHASHSEED", "0")
    settings = {"without pilots": [], "with pilots": [f"--set={pair}" for pair in arguments.pilots]}
    curves: dict[str, list[Curve]] = {side: [] for side in settings}
    seconds: dict[str, list[float]] = {side: [] for side in settings}
    name = ""
    for seed in range(arguments.seeds):
        for side, extra in settings.items():
            folder = arguments.out / f"{side.replace(' ', '_')}_{seed}"
            metrics = train(folder, arguments.preset, seed, [*arguments.train, *extra])
            name, found, spent = curve(metrics, arguments.figure)
            curves[side].append(found)
            seconds[side].append(spent)
    draw(curves, name, arguments.out / "curves.png")
    iterations = [x for x, _ in curves["with pilots"][0]]
    print(f"| {name} after | " + " | ".join(map(str, iterations)) + " | time per picture |")
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

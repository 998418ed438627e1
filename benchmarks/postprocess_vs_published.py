"""Post-processing beside the straightforward published order: the same answers of a network, the same results.

    python benchmarks/postprocess_vs_published.py [--rounds 5] [--threads 2] [--json FILE]

The published order renders every query at the network's input and at the image's size before it looks at any score
(m2f_cli/inference/bench/published.py). It is given mask logits that are rendered at stride 4 already; ours renders them
itself, so its share of that is in its time. 100 queries of smooth noise, 18 of them sure of a class, as a trained model
has them. Each side of each row runs in a process of its own, rounds alternate; memory is the growth of the process in
its first run. Results must be equal but for pixels where two claims are equal to the last digit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from m2f_cli.benchmark import interleaved as race
from m2f_cli.benchmark import machine
from m2f_cli.benchmark import statistics as stats
from m2f_cli.benchmark.case import Case
from m2f_cli.config import presets as config
from m2f_cli.config.schema import ResizeConfig

GOALS = {"panoptic": (7, 10), "instance": (4.5, 8), "semantic": (1.8, 3)}  # time, memory
# What a user meets: COCO's images shrunk to 800, the same without shrinking, and a large one.
SIZES = {
    "800x1200 -> 427x640": ((427, 640), (800, 1333)),
    "800x1200 as they are": ((800, 1200), None),
    "800x1200 -> 1600x2400": ((1600, 2400), (800, 1333)),
}
MOST_DIFFERENT = 1e-4  # share of pixels


def preset_of(task: str, resize: tuple[int, int] | None, image: tuple[int, int], folder: Path) -> str:
    """A preset of the panoptic COCO model that does one task on images of one size."""
    settings = config.load("coco-panoptic-swin-t")
    size = ResizeConfig() if resize is None else ResizeConfig(short_edge=resize[0], max_edge=resize[1])
    test = settings.test.model_copy(update={"resize": size})
    path = folder / f"{task}-{'x'.join(map(str, image))}.yaml"
    path.write_text(config.dump(settings.model_copy(update={"task": task, "test": test}), named=False))
    return str(path)


def measure(task: str, label: str, arguments: argparse.Namespace, folder: Path) -> dict:
    image, resize = SIZES[label]
    case = Case(
        what="post",
        preset=preset_of(task, resize, image, folder),
        device=arguments.device,
        image=image,
        threads=arguments.threads,
    )
    tree = race.bench(case, race.BenchOptions(rounds=arguments.rounds, watched=0, peer="published"))
    ours, theirs = tree["sides"]["m2f"], tree["sides"]["published"]
    memory = "device_peak_mib" if ours["memory"]["device_peak_mib"] else "resident_growth_mib"
    apart = {name: stats.most(value) for name, value in tree["difference"].items()}
    return {
        "task": task,
        "size": label,
        "ours": ours["median"],
        "published": theirs["median"],
        "time": tree["ratio"]["time"],
        "memory": [theirs["memory"][memory], ours["memory"][memory]],
        "difference": apart,
        "goal": GOALS[task],
        "machine": tree["machine"],
    }


def show(row: dict) -> str:
    time, (their_memory, our_memory) = row["time"], row["memory"]
    sure = stats.between(time, ".1f")
    memory = (
        "not told"
        if our_memory is None
        else (f"{their_memory:6.0f} -> {our_memory:5.0f} MiB {their_memory / max(our_memory, 1):5.1f}x")
    )
    times = f"{row['published']:7.3f} -> {row['ours']:6.3f} s {time['value']:5.1f}x{sure:25}"
    goal = f"goal {row['goal'][0]}x, {row['goal'][1]}x"
    apart = max(row["difference"].values())
    return f"{row['task']:9} {row['size']:22} {times} {memory}  {goal}  difference {apart:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--task", choices=sorted(GOALS), action="append", help="only these; repeatable")
    parser.add_argument("--size", choices=list(SIZES), action="append", help="only these; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    print(
        f"{machine.cpu_name()}, {arguments.threads} threads, {machine.allocator()['name']}, load "
        f"{machine.load_average()}; ratios of medians of {arguments.rounds} rounds"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.task or GOALS:
            for label in arguments.size or SIZES:
                rows.append(measure(task, label, arguments, Path(folder)))
                print(show(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": arguments.rounds, "rows": rows}, indent=2) + "\n")
    if any(max(row["difference"].values()) > MOST_DIFFERENT for row in rows):
        raise SystemExit("some results differ")


if __name__ == "__main__":
    main()

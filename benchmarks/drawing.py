"""Time of an overlay: 100 segments drawn over an image of 1333 x 800, and the forward pass before it.

    python benchmarks/drawing.py [--rounds 20] [--segments 100] [--size 800 1333] [--forward coco-panoptic-swin-t]

One thread; times are of the processor, so that other processes do not count. All tasks draw the same Voronoi cells, as
`m2f predict` does. With --forward, a network with random weights runs on an image of that size, and the share of its
time is printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import cv2
import numpy as np

from m2f_cli.benchmark import machine
from m2f_cli.results.draw_options import PARTS, DrawOptions
from m2f_cli.results.types import Instances, PanopticMap, Result, Segment, SemanticMap
from m2f_cli.structures.categories import load_categories
from m2f_cli.structures.rle import encode_ids


def results(count: int, size: tuple[int, int]) -> dict[str, Result]:
    """Return a result of each task, of the same cells."""
    rng = np.random.default_rng(0)
    centers_N2 = rng.uniform(0, 1, (count, 2)) * size
    rows, columns = (np.arange(0, edge, 4) for edge in size)
    far = (rows[:, None, None] - centers_N2[:, 0]) ** 2 + (columns[None, :, None] - centers_N2[:, 1]) ** 2
    cells = np.argmin(far, axis=-1).astype(np.float32)
    ids_HW = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32) + 1
    categories = load_categories("coco-panoptic")
    labels = rng.integers(0, len(categories), count)
    scores = rng.uniform(0.5, 1, count)
    areas = np.bincount(ids_HW.ravel(), minlength=count + 1)
    segments = [Segment(i + 1, int(labels[i]), float(scores[i]), int(areas[i + 1])) for i in range(count)]
    labels_HW = np.append(255, labels)[ids_HW].astype(np.uint8)
    return {
        "panoptic": PanopticMap(size, categories, ids_HW, segments),
        "instance": Instances(size, categories, labels, scores, encode_ids(ids_HW, range(1, count + 1))),
        "semantic": SemanticMap(size, categories, labels_HW),
    }


def seconds_of(draw: Callable[[], object], rounds: int) -> list[float]:
    draw()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        draw()
        taken.append(time.process_time() - start)
    return taken


def forward_seconds(preset: str, size: tuple[int, int]) -> float:
    import torch

    from m2f_cli.benchmark.model_under_test import shape
    from m2f_cli.config import presets
    from m2f_cli.model import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(presets.load(preset).model, 133).eval()
    shape(network)
    height, width = (-(-edge // 32) * 32 for edge in size)
    images = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        return min(seconds_of(lambda: network(images), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--segments", type=int, default=100)
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1333], metavar=("H", "W"))
    parser.add_argument("--forward", metavar="PRESET")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    size = tuple(arguments.size)
    image_HW3 = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    print(f"{arguments.segments} segments, {size[1]} x {size[0]}, {machine.cpu_name()}, load {machine.load_average()}")
    looks = {"as by default": DrawOptions(), "all parts and a legend": DrawOptions(parts=PARTS, legend=True)}
    forward = forward_seconds(arguments.forward, size) if arguments.forward else None
    for task, result in results(arguments.segments, size).items():
        for look, options in looks.items():
            taken = seconds_of(lambda result=result, options=options: result.plot(image_HW3, options), arguments.rounds)
            line = f"{task:9} {look:23} {1000 * median(taken):6.1f} ms, best {1000 * min(taken):.1f}"
            print(line + (f"; {median(taken) / forward:.3f} of the forward pass" if forward else ""))
    if forward:
        print(f"forward pass of {arguments.forward}: {forward:.2f} s")


if __name__ == "__main__":
    main()

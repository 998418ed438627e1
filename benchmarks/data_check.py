"""How long `m2f data check` takes, and by how much memory grows with the number of annotations.

    python benchmarks/data_check.py [--annotations 100000] [--workers 2] [--keep DIR]

A COCO instance data set is generated first (not timed): 640 x 480 JPEGs with seven objects each, polygons of 24 points
and run lengths in turn, a tenth of the images in val. Then it is opened, looked at and judged, as the command does.
Memory is the peak of the process after opening, and by how much the check raises it. CPU seconds are what the check
itself needed, of all threads together: on a machine that does other things they are the figure to look at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.data.open_dataset import open_data
from m2f_cli.dataset_tools.check.report import open_splits, report

SIZE = (480, 640)
PER_IMAGE, POINTS, CLASSES = 7, 24, 80


def generate(folder: Path, annotations: int) -> None:
    total = max(10, annotations // PER_IMAGE)
    for split, numbers in (("val", range(total // 10)), ("train", range(total // 10, total))):
        (folder / split).mkdir(parents=True)
        rows = [row for number in numbers for row in _image(folder / split / f"{number}.jpg", number)]
        images = [{"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in numbers]
        categories = [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)]
        tree = {"images": images, "annotations": rows, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))


def _image(path: Path, number: int) -> list[dict]:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    small.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
    return [_object(rng, number, PER_IMAGE * number + i) for i in range(PER_IMAGE)]


def _object(rng: np.random.Generator, image_id: int, key: int) -> dict:
    angles = np.sort(rng.uniform(0, 2 * np.pi, POINTS))
    radii = rng.uniform(0.6, 1, POINTS) * rng.uniform(10, 120)
    center = rng.uniform((0, 0), SIZE[::-1])
    points = np.clip(center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), 0, SIZE[::-1])
    segmentation = [points.round(2).ravel().tolist()]
    if key % 2:
        rle = coco_mask.frPyObjects(segmentation, *SIZE)[0]
        segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {
        "id": key,
        "image_id": image_id,
        "category_id": 1 + int(rng.integers(CLASSES)),
        "iscrowd": 0,
        "area": 1.0,
        "segmentation": segmentation,
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="generate into this folder, or use what it holds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary) / "data"
        if not folder.exists():
            make = multiprocessing.get_context("spawn").Process(target=generate, args=(folder, arguments.annotations))
            make.start()  # in a process of its own: its memory is not that of the check
            make.join()
        began, worked = time.perf_counter(), time.process_time()
        opened, findings = open_splits(lambda split: open_data(folder, split))
        opening, memory = time.perf_counter() - began, peak_mib()
        found = report(opened, findings, workers=arguments.workers)
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    objects = sum(sum(split.description.objects) for split in found.splits)
    print(
        json.dumps(
            {
                "annotations": objects,
                "pictures": sum(map(len, opened)),
                "workers": arguments.workers,
                "seconds": round(seconds, 2),
                "of them opening": round(opening, 2),
                "CPU seconds": round(cpu, 2),
                "peak MiB after opening": round(memory),
                "raised by the check, MiB": round(peak_mib() - memory, 1),
                "twins": len(found.duplicates),
                "errors": len(found.errors),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

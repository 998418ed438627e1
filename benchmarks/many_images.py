"""Predict and evaluate thousands of images, some of them broken: counts, speed and memory over time.

    python benchmarks/many_images.py [--images 5000] [--broken 0.01] [--folder DIR]

Images are generated scenes of 64 x 96 pixels, the model is the preset "tiny" after one step. Each command runs in a
process of its own, whose memory and journal are watched. Prints images/s of each tenth of a run, the peak of memory of
its second half beside that of its first, and whether results and reported failures add up to the images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.inference.sources import RUN_MARK
from m2f_cli.structures.annotations import ids_to_rgb

SECONDS = 0.25  # between two looks at a process


def write_data(folder: Path, count: int, broken: float) -> list[str]:
    """Write COCO panoptic data and return the names of the broken images."""
    data = synthetic_dataset(count=count, size=(64, 96))
    images, annotations = folder / "val2017", folder / "annotations" / "panoptic_val2017"
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    records, entries, bad = [], [], []
    for i, record in enumerate(data.records):
        name, annotation = f"{i:06d}", record.read_annotation()
        path = images / f"{name}.jpg"
        Image.fromarray(record.read_image()).save(path, quality=90)
        Image.fromarray(ids_to_rgb(annotation.ids_HW)).save(annotations / f"{name}.png")
        segments = [
            {"id": int(each.id), "category_id": data.categories[each.label].id, "iscrowd": 0}
            for each in annotation.segments
        ]
        records.append({"id": i, "file_name": path.name, "height": 64, "width": 96})
        entries.append({"image_id": i, "file_name": f"{name}.png", "segments_info": segments})
        if broken and i % round(1 / broken) == 7:
            content = path.read_bytes()
            path.write_bytes((content[: len(content) // 3], b"", b"no image at all")[len(bad) % 3])
            bad.append(path.name)
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in data.categories]
    document = {"images": records, "annotations": entries, "categories": categories}
    (folder / "annotations" / "panoptic_val2017.json").write_text(json.dumps(document))
    return bad


def resident(process: subprocess.Popen) -> int:
    """Return the resident memory of a process in MiB, 0 after its end."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) // 1024 if lines else 0


def watch(command: list[str], journal: Path) -> tuple[list[tuple[float, int, int]], int]:
    """Run a command; return (seconds, images in the journal, MiB) at each look, and the exit code."""
    process = subprocess.Popen([sys.executable, "-m", "m2f_cli", *command], stderr=subprocess.DEVNULL)
    started, looks, size, lines = time.perf_counter(), [], 0, 0
    while process.poll() is None:
        time.sleep(SECONDS)
        if journal.exists() and journal.stat().st_size > size:
            with journal.open("rb") as file:
                file.seek(size)
                added = file.read()
            size, lines = size + len(added), lines + added.count(b"\n")
        looks.append((time.perf_counter() - started, lines, resident(process)))
    return looks, process.returncode


def describe(name: str, looks: list[tuple[float, int, int]]) -> str:
    begun = [look for look in looks if look[1] > 1]
    running = [look for look in begun if look[1] < begun[-1][1]]
    tenths = [running[round(k * (len(running) - 1) / 10)] for k in range(11)]
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(tenths[1:])]
    half = len(running) // 2
    first, second = (max(look[2] for look in part) for part in (running[:half], running[half:]))
    slope = np.polyfit(range(len(rates)), rates, 1)[0] * len(rates) / statistics.mean(rates)
    return (
        f"{name}: images/s of each tenth from the second: {', '.join(f'{rate:.0f}' for rate in rates)}; "
        f"trend over the run {slope:+.1%}; peak of memory {first} MiB, then {second} MiB ({second / first - 1:+.1%})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--broken", type=float, default=0.01)
    parser.add_argument("--folder", type=Path, help="a new folder; by default a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        data, run, out, scored = (folder / name for name in ("coco", "run", "out", "scored"))
        bad = write_data(data, arguments.images, arguments.broken)
        train = ["train", "--preset", "tiny", "--init", "random", "--set", "train.iterations=1", "--out", str(run)]
        subprocess.run([sys.executable, "-m", "m2f_cli", *train], check=True, stderr=subprocess.DEVNULL)

        command = ["predict", str(data / "val2017"), "--model", str(run), "--out", str(out), "--save", "label-png"]
        looks, code = watch(command, out / RUN_MARK)
        print(describe("predict", looks))
        records = json.loads((out / "predictions.json").read_text())["predictions"]
        failed = sorted(Path(record["file"]).name for record in records if "error" in record)
        right = failed == sorted(bad) and len(records) == arguments.images and code == 3
        print(
            f"predict: {len(records)} images, {len(failed)} failed, exit code {code}: {'exact' if right else 'WRONG'}"
        )

        command = ["eval", "--model", str(run), "--data", str(data), "--metric", "pq", "--out", str(scored)]
        looks, code = watch(command, scored / "pictures.jsonl")
        print(describe("eval", looks))
        results = json.loads((scored / "results.json").read_text())
        exact = results["scored"] + len(bad) == arguments.images and code == 3
        verdict = "exact" if exact else "WRONG"
        print(f"eval: {results['scored']} scored of {arguments.images}, exit code {code}: {verdict}")
    return int(not (right and exact))


if __name__ == "__main__":
    sys.exit(main())

"""Predict a manifest of many tiny images with a trivial network: memory over time, and counts.

    python benchmarks/manifest.py [--images 100000] [--missing 0.01]

The network answers the class of a pixel from its red value, so that everything around the network is measured: the
manifest, reading, the journal, shards of parquet, failures. Memory is that of the process after each image. Prints the
peak of its second half beside that of its first, and whether results and errors add up to the entries.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pyarrow import parquet

from m2f_cli.inference.base import BaseSegmenter
from m2f_cli.inference.predict import PredictProgress, predict
from m2f_cli.inference.sources import expand
from m2f_cli.results.types import SemanticMap
from m2f_cli.structures.categories import Category

EDGE = 16  # pixels
FILES = 1000  # different images; the others are links to them


class Trivial(BaseSegmenter):
    """Segmenter that finds the first class where an image is dark, and the second elsewhere."""

    tasks = ("semantic",)

    def __init__(self) -> None:
        self.model, self.config, self.notes = None, None, []  # type: ignore[assignment]
        self.categories = (Category(1, "dark", False, (0, 0, 0)), Category(2, "bright", False, (255, 255, 255)))
        self.device, self.precision, self.source, self.default_task = torch.device("cpu"), "fp32", "trivial", "semantic"

    def check_task(self, task: str) -> Any:
        return task

    def prepare(self, image_HWC: np.ndarray) -> np.ndarray:
        return image_HWC

    def infer(self, batch: Sequence[Any]) -> list[Any]:
        return list(batch)

    def finish(self, raw: np.ndarray, task: Any = None, **thresholds: Any) -> SemanticMap:
        return SemanticMap(raw.shape[:2], self.categories, (raw[..., 0] > 127).astype(np.uint8))

    def semantic_scores(self, raw: Any) -> Any:
        raise NotImplementedError


def write_manifest(folder: Path, count: int, missing: float) -> tuple[Path, int]:
    """Write images and a manifest with ids. Return it, and the number of images that it names and that do not exist."""
    rng = np.random.default_rng(0)
    every, absent = round(1 / missing) if missing else 0, 0
    lines = ["uri,id"]
    for i in range(count):
        path = folder / f"{i // FILES:04d}" / f"{i:07d}.png"
        if every and i % every == 7:
            absent += 1
        elif i < FILES:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)).save(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            source = i % FILES if not (every and i % FILES % every == 7) else 0
            os.link(folder / "0000" / f"{source:07d}.png", path)
        lines.append(f"{path.relative_to(folder)},image-{i:07d}")
    manifest = folder / "list.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest, absent


def resident() -> float:
    """Return the memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--missing", type=float, default=0.01)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "images", Path(temporary) / "out"
        manifest, absent = write_manifest(folder, arguments.images, arguments.missing)
        looks: list[float] = []

        def look(progress: PredictProgress) -> None:
            looks.append(resident())

        started = time.perf_counter()
        sources = list(expand([str(manifest)]))
        print(f"{len(sources)} entries found in {time.perf_counter() - started:.1f} s, {resident():.0f} MiB")
        started = time.perf_counter()
        summary = predict(Trivial(), sources, "semantic", out, ["parquet"], on_progress=look)
        seconds = time.perf_counter() - started
        rows = sum(parquet.read_metadata(path).num_rows for path in sorted((out / "parquet").glob("*.parquet")))
        errors = parquet.read_metadata(out / "errors.parquet").num_rows
        half = len(looks) // 2
        first, second = max(looks[:half]), max(looks[half:])
        exact = (rows + errors, errors, summary.done) == (arguments.images, absent, rows)
        print(
            f"{arguments.images} entries in {seconds:.0f} s: {rows} rows and {errors} errors, "
            f"{'exact' if exact else 'WRONG'}; peak of memory {first:.0f} MiB, then {second:.0f} MiB "
            f"({second / first - 1:+.1%}), at the end {resident():.0f} MiB"
        )
    return int(not exact)


if __name__ == "__main__":
    sys.exit(main())

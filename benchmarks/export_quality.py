"""What an export costs: a trained model and its files in every number format, on the same annotated images.

    python benchmarks/export_quality.py --model RUN --data DIR [--limit 20] [--size H W] [--out runs/export_quality]

For each of ONNX and OpenVINO in fp32, fp16 and int8 (calibrated with images of the train split): the size of the
file against that of the weights; the largest difference of mask logits as a share of their range, both seeing the same
input; the share of pixels that differ in the final maps, at the size of the image; and the metric, by the same
`m2f eval` for the model and the file, with the interval of `m2f eval --compare`. One table in Markdown on stdout.

Without --size the files take any size and see images as the model does. Files that exist are not written again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from m2f_cli.errors import M2FError
from m2f_cli.evaluation.compare import compare
from m2f_cli.evaluation.evaluate import METRIC_OF
from m2f_cli.export import base, verify
from m2f_cli.export.quantise import open_measured
from m2f_cli.inference import load
from m2f_cli.inference.segmenter import Segmenter

FORMATS = {"onnx": "model.onnx", "openvino": "model"}
PRECISIONS = ("fp32", "fp16", "int8")
ANYTHING = verify.Tolerance(logits=float("inf"), moved=1.0, pixels=1.0)  # measured here, refused by `m2f export`
COLUMNS = ("file", "MiB", "of the weights", "mask logits, largest / range", "pixels that differ, mean", "worst image")


@dataclass(frozen=True)
class Differences:
    """Of a file from the model, image by image: largest of mask logits over their range; share of pixels."""

    logits: list[float]
    pixels: list[float]

    def cells(self) -> list[str]:
        return [f"{max(self.logits):.1e}", f"{statistics.mean(self.pixels):.3%}", f"{max(self.pixels):.3%}"]


def exported(model: Segmenter, format: str, precision: str, options: base.ExportOptions, folder: Path) -> Path:
    path = folder / f"{format}-{precision}" / FORMATS[format]
    if not path.exists():
        base.export(model, path, format, options, on_step=lambda step: note(step.message))
    return path


def differences(model: Segmenter, file: Segmenter, images: Sequence) -> Differences:
    found = Differences([], [])
    for image_HW3 in images:
        seen = file.prepare(image_HW3)  # a file of one size shrinks what is larger: both get that
        [ours], [theirs] = model.infer([seen]), file.infer([seen])
        height, width = (-(-edge // 4) for edge in seen.pixels_CHW.shape[1:])  # padding may differ, and is no answer
        masks = [verify.stride4(raw.masks)[:, :height, :width] for raw in (ours, theirs)]
        found.logits.append(verify.LogitDifference.of(*masks).to_dict()["largest_share"])
        found.pixels.append(verify.differing(model.finish(ours), file.finish(theirs)))
    return found


def evaluated(ref: str, arguments: argparse.Namespace, metric: str, folder: Path) -> float:
    """The figure of `m2f eval`, in percent."""
    if not (folder / "results.json").is_file():
        words = [
            "eval",
            "--model",
            ref,
            "--data",
            str(arguments.data),
            "--metric",
            metric,
            "--out",
            str(folder),
            "--limit",
            str(arguments.limit),
            "--workers",
            "1",
            "--device",
            "cpu",
        ]
        note(f"m2f {' '.join(words)}")
        subprocess.run([sys.executable, "-m", "m2f_cli", *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "results.json").read_text())["figures"][metric]


def row(path: Path, model: Segmenter, images: Sequence, arguments: argparse.Namespace, own: Path) -> list[str]:
    """One line of the table. own: the evaluation of the model itself."""
    name, metric = path.parent.name, METRIC_OF[model.default_task]
    size = sum(file.stat().st_size for file in files_of(path))
    found = differences(model, load.load(path, device="cpu"), images)
    folder = arguments.out / "eval" / name
    figure = evaluated(str(path), arguments, metric, folder)
    first = compare(own, folder).figures[0]
    return [
        name,
        f"{size / 2**20:.1f}",
        f"{size / base.weight_bytes(model):.3f}",
        *found.cells(),
        f"{figure:.2f} ({first.difference:+.2f}, {first.low:+.2f} to {first.high:+.2f})",
    ]


def files_of(path: Path) -> list[Path]:
    """What is needed to run it."""
    if path.is_dir():
        return [file for file in path.iterdir() if file.suffix in (".xml", ".bin")]
    return [path, *path.parent.glob(f"{path.name}.data")]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="REF", help="a trained run or checkpoint")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="annotated images, train and val")
    parser.add_argument("--limit", type=int, default=20, help="images of val; default: %(default)s")
    parser.add_argument("--calibrate", type=int, default=50, help="images of train; default: %(default)s")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--only", nargs="+", default=[f"{f}-{p}" for f in FORMATS for p in PRECISIONS])
    parser.add_argument("--out", type=Path, default=Path("runs/export_quality"))
    arguments = parser.parse_args()

    model = load.load(arguments.model, device="cpu")
    data = open_measured(model, arguments.data)
    records = data.records[: arguments.limit]
    calibration = tuple(each.image for each in open_measured(model, arguments.data, "train").records)
    own = arguments.out / "eval" / "model"
    metric = METRIC_OF[model.default_task]
    figure = evaluated(arguments.model, arguments, metric, own)
    print(
        f"{model.config.name}, {len(records)} images of {data.name}, torch {torch.__version__}; "
        f"{metric} of the model: {figure:.2f}\n"
    )
    columns = [*COLUMNS, f"{metric} (file - model, 95 %)"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    images = [record.read_image() for record in records]
    for name in arguments.only:
        format, precision = name.split("-")
        options = base.ExportOptions(
            size=arguments.size and tuple(arguments.size),
            precision=precision,
            tolerance=ANYTHING,
            images=calibration[: arguments.calibrate],
        )
        try:
            path = exported(model, format, precision, options, arguments.out)
            with contextlib.redirect_stdout(sys.stderr):
                cells = row(path, model, images, arguments, own)
        except M2FError as error:
            cells = [name, str(error)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

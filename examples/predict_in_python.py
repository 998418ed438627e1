"""Segment images from Python: load a model once, call it, use the results.

python examples/predict_in_python.py photo.jpg --model coco-panoptic-swin-t --out out/python
"""

from __future__ import annotations

import argparse
from pathlib import Path

import m2f_cli as m2f


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment images and say what is in them.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", default="coco-panoptic-swin-t", help="a preset, a run, a checkpoint, …")
    parser.add_argument("--out", type=Path, default=Path("out/python"))
    arguments = parser.parse_args()

    model = m2f.load(arguments.model, device="auto", precision="auto")
    for path in arguments.images:
        result = model(path)  # the model's own task; also an array or a PIL image
        print(f"{path}: {result.size[1]} x {result.size[0]} pixels, {result.task}")
        for region in result.regions():
            name = result.categories[region.label].name
            score = "" if region.score is None else f", score {region.score:.2f}"
            print(f"  {name}: {region.area} pixels{score}")
        for file in result.save(arguments.out, ["overlay", "polygons"], name=path.stem):
            print(f"  wrote {file}")


if __name__ == "__main__":
    main()

"""Run a panoptic model that m2f exported, without PyTorch and without m2f: onnxruntime, numpy and Pillow.

m2f export --model runs/mine --size 512 512 --postprocess panoptic --out model.onnx
python examples/onnx_without_pytorch.py model.onnx photo.jpg --out panoptic.png

The file says itself what it takes: its metadata "m2f" has the size, the normalisation and the classes. For a program
with more formats and tasks use `m2f export --with-runner`.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an exported model with onnxruntime.")
    parser.add_argument("model", help="a file of: m2f export --postprocess panoptic")
    parser.add_argument("image")
    parser.add_argument("--out", default="panoptic.png", help="the segments, one colour each")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    if "panoptic_map" not in names:
        raise SystemExit("The model gives no panoptic map: export it with --postprocess panoptic.")
    description = json.loads(session.get_modelmeta().custom_metadata_map["m2f"])

    image = ImageOps.exif_transpose(Image.open(arguments.image)).convert("RGB")
    pixels_3HW = np.asarray(image.resize(input_size(description, image), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    outputs = dict(zip(names, session.run(None, {"images": normalised(description, pixels_3HW)[None]}), strict=True))

    ids_HW = outputs["panoptic_map"][0]
    classes = [category["name"] for category in description["categories"]]
    columns = (outputs[f"segment_{name}"][0] for name in ("ids", "labels", "scores", "areas"))
    for number, label, score, area in zip(*columns, strict=True):
        if number > 0:
            print(f"{classes[label]}: {area} pixels, score {score:.2f}")
    colors = np.random.default_rng(0).integers(64, 256, (int(ids_HW.max()) + 1, 3), dtype=np.uint8)
    colors[0] = 0  # nothing was found there
    Image.fromarray(colors[ids_HW]).resize(image.size, Image.Resampling.NEAREST).save(arguments.out)
    print(f"wrote {arguments.out}")


def input_size(description: dict, image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) of the input: the fixed one, or the image's rounded up to what the network takes."""
    if description["size"] is not None:
        height, width = description["size"]
        return width, height
    multiple = description["multiple"]
    width, height = (max(2, -(-edge // multiple)) * multiple for edge in image.size)
    return width, height


def normalised(description: dict, pixels_3HW: np.ndarray) -> np.ndarray:
    """Return the image as the graph takes it: float32, normalised unless that happens inside."""
    pixels_3HW = pixels_3HW.astype(np.float32)
    if description["normalised"]:
        return pixels_3HW
    mean, std = (np.float32(description["config"]["input"][key])[:, None, None] for key in ("mean", "std"))
    return (pixels_3HW - mean) / std


if __name__ == "__main__":
    main()

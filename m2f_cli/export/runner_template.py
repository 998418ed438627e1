"""Run an ONNX file of m2f on an image, with numpy, onnxruntime and Pillow alone.

    python run_onnx.py photo.jpg                            writes photo-segments.png and photo-segments.json
    python run_onnx.py photo.jpg --model model.onnx --out result.png

A model for panoptic segmentation writes a map in the form of COCO: the id of a segment is R + 256 G + 65536 B, and 0 is
no segment. The JSON file lists the segments. A model for instance segmentation alone writes the same for its objects;
where they overlap, the one with the highest score is visible. A model for semantic segmentation alone writes class ids.
Images are read as by m2f; TIFFs of 16-bit or float colours also need opencv-python. Images are resized by Pillow. This
file is under the Apache licence 2.0: copy, change and distribute it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from m2f_cli.structures.rgb import identify, image_to_rgb, tiff_to_rgb  # `m2f export` puts the code itself here

LEAST_SCORE = 0.5  # of an object of a model for instance segmentation alone
LOSSLESS = (".png", ".tif", ".tiff", ".bmp")  # JPEG would change ids


def input_size(height, width, about):
    """Return the resized size of an image, and the size of the network's input, padded at the right and bottom."""
    resize = about["config"]["test"]["resize"]
    rounded = round if resize.get("rounding") == "half_even" else lambda edge: int(edge + 0.5)
    if "fixed" in resize:
        new = tuple(resize["fixed"])
    else:
        scale = resize["short_edge"] / min(height, width) if "short_edge" in resize else 1.0
        if max(height, width) * scale > resize.get("max_edge", float("inf")):
            scale = resize["max_edge"] / max(height, width)
        if "fit" in resize:
            scale = min(resize["fit"] / height, resize["fit"] / width)
        new = tuple(max(1, rounded(edge * scale)) for edge in (height, width))
    if about["size"]:
        fit = min(1.0, about["size"][0] / new[0], about["size"][1] / new[1])
        return (new if fit == 1.0 else tuple(max(1, int(edge * fit)) for edge in new)), tuple(about["size"])
    multiple = about["multiple"]
    return new, tuple(max(2, -(-edge // multiple)) * multiple for edge in new)


def network_input(image, valid, padded, about):
    """Return the input (batch, 3, H, W), float32: normalised, and padded."""
    mean, std = (np.array(about["config"]["input"][key], np.float32) for key in ("mean", "std"))
    pixels = np.asarray(image.resize(valid[::-1], Image.Resampling.BILINEAR), np.float32)
    padding = about["config"]["test"].get("pad_value", mean)
    canvas = np.full((*padded, 3), (padding - mean) / std, np.float32)
    canvas[: valid[0], : valid[1]] = (pixels - mean) / std
    if about["normalised"]:  # inside the file, whose input is 0 to 255
        canvas = canvas * std + mean
    batch = np.zeros((about["batch"] or 1, 3, *padded), np.float32)
    batch[0] = canvas.transpose(2, 0, 1)
    return batch


def resize(map_hw, size):
    """Resize a map bilinearly with half-pixel centres, as published models resize masks."""
    for axis, (old, new) in enumerate(zip(map_hw.shape, size, strict=True)):
        if old == new:
            continue
        centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, None)
        low = np.minimum(centre.astype(int), old - 1)
        weight = (centre - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        low_part, high_part = (map_hw.take(i, axis) for i in (low, np.minimum(low + 1, old - 1)))
        map_hw = low_part + (high_part - low_part) * weight
    return map_hw


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def panoptic(class_logits, mask_at, size, about):
    """Return segment ids (H, W) and the segments, by the published rule."""
    test, categories = about["config"]["test"], about["categories"]
    probs = softmax(class_logits)
    labels, scores = probs.argmax(-1), probs.max(-1)
    kept = [q for q in range(len(labels)) if labels[q] < len(categories) and scores[q] > test["object_threshold"]]
    best, owner, sure, covered = np.full(size, -1.0), np.full(size, -1), np.zeros(size, bool), {}
    for query in kept:
        mask = sigmoid(mask_at(query))
        inside = mask >= 0.5
        covered[query] = int(inside.sum())
        wins = mask * scores[query] > best
        best[wins], owner[wins], sure[wins] = (mask * scores[query])[wins], query, inside[wins]
    ids, segments, stuff = np.zeros(size, np.int32), [], {}
    for query in kept:
        owned = owner == query
        shown = owned & sure if test.get("only_sure_pixels", True) else owned
        if not covered[query] or not shown.any() or owned.sum() / covered[query] < test["overlap_threshold"]:
            continue
        category = categories[labels[query]]
        number = stuff.get(category["id"], len(segments) + 1)
        if number > len(segments):
            segments.append(
                {
                    "id": number,
                    "category_id": category["id"],
                    "name": category["name"],
                    "isthing": category["isthing"],
                    "score": float(scores[query]),
                    "area": 0,
                }
            )
            if not category["isthing"]:
                stuff[category["id"]] = number
        ids[shown] = number
        segments[number - 1]["area"] += int(shown.sum())
    return ids, segments


def instance(class_logits, mask_at, size, about):
    """Return object ids (H, W) and the objects, by the published rule. The highest score is visible in overlaps."""
    probs = softmax(class_logits)[:, :-1]
    best, objects = np.argsort(-probs, axis=None, kind="stable")[: about["config"]["test"]["top_k"]], []
    for pair in best[probs.ravel()[best] >= LEAST_SCORE]:  # its mask can only lower the score
        query, label = divmod(int(pair), probs.shape[1])
        mask = mask_at(query)
        inside = mask > 0
        score = float(probs[query, label] * (sigmoid(mask) * inside).sum() / (inside.sum() + 1e-6))
        if score >= LEAST_SCORE:
            objects.append((score, label, inside))
    ids, segments = np.zeros(size, np.int32), []
    for number, (score, label, inside) in reversed(list(enumerate(sorted(objects, key=lambda each: -each[0]), 1))):
        ids[inside] = number
        category = about["categories"][label]
        segments.insert(
            0,
            {
                "id": number,
                "category_id": category["id"],
                "name": category["name"],
                "isthing": category["isthing"],
                "score": score,
                "area": int(inside.sum()),
            },
        )
    return ids, segments


def semantic(class_logits, mask_at, size, about):
    """Return category ids (H, W)."""
    of_logits = about["config"]["test"].get("semantic_scores") == "logits"
    probs = softmax(class_logits)[:, :-1]
    scores = np.zeros((probs.shape[1], *size), np.float32)
    for query in range(len(probs)):
        mask = mask_at(query) if of_logits else sigmoid(mask_at(query))
        scores += probs[query][:, None, None] * mask
    return np.array([category["id"] for category in about["categories"]])[scores.argmax(0)]


def shown(text):
    """Return text without what drives a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def opened(model):
    """Open the file and return its session and its description."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise SystemExit(f"{shown(model)} cannot be opened: {shown(error)}") from error
    about = session.get_modelmeta().custom_metadata_map.get("m2f")
    if about is None:
        raise SystemExit(f"{shown(model)} was not exported by m2f.")
    return session, json.loads(about)


def read(path):
    """Read an image as m2f does: upright, transparency over white, the high byte of 16-bit values."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
            raise SystemExit(f"{shown(path)} is no file.")
        with path.open("rb") as file:
            image, tiff = identify(file)
            if image is None and tiff is None:
                raise SystemExit(f"{shown(path)}: cannot identify image file; give JPEG, PNG, WebP, TIFF or BMP.")
            if image is not None:
                return Image.fromarray(image_to_rgb(image))
            file.seek(0)
            return Image.fromarray(tiff_to_rgb(file.read(), tiff))
    except ModuleNotFoundError as error:
        raise SystemExit(f"{shown(path)} is a TIFF that only OpenCV reads: pip install opencv-python") from error
    except Exception as error:  # Pillow raises errors of many kinds on damaged files
        raise SystemExit(f"{shown(path)} cannot be read: {shown(error)}") from error


def save_png(pixels, out):
    encoded = io.BytesIO()  # Pillow's own way into a file does not notice a disk that takes only a part
    Image.fromarray(pixels).save(encoded, format="PNG")
    out.write_bytes(encoded.getvalue())


def run(model, path, out):
    session, about = opened(model)
    image = read(path)
    size = (image.height, image.width)
    valid, padded = input_size(*size, about)
    images = network_input(image, valid, padded, about)
    classes, masks = session.run(["class_logits", "mask_logits"], {session.get_inputs()[0].name: images})

    def mask_at(query):
        return resize(resize(masks[0, query], padded)[: valid[0], : valid[1]], size)

    tasks = about["config"]["test"]["tasks"]
    if "panoptic" in tasks or "semantic" not in tasks:
        ids, segments = (panoptic if "panoptic" in tasks else instance)(classes[0], mask_at, size, about)
        save_png(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8), out)
        out.with_suffix(".json").write_text(json.dumps({"segments": segments}, indent=2) + "\n")
        return f"{len(segments)} segments: {shown(out)}"
    labels = semantic(classes[0], mask_at, size, about)
    save_png(labels.astype(np.uint8 if labels.max() < 256 else np.uint16), out)
    return f"{len(np.unique(labels))} classes: {shown(out)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", type=Path, help="by default the one .onnx beside this file")
    parser.add_argument("--out", type=Path, help="by default IMAGE-segments.png")
    given = parser.parse_args()
    beside = [given.model] if given.model else list(Path(__file__).parent.glob("*.onnx"))
    if len(beside) != 1:
        parser.error(f"there are {len(beside)} .onnx files beside this program: pass --model")
    out = given.out or given.image.with_name(f"{given.image.stem}-segments.png")
    if out.suffix.lower() not in LOSSLESS:
        parser.error(f"--out should end in {', '.join(LOSSLESS)}: other files lose values")
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack characters of a file's name
        sys.stdout.write(run(beside[0], given.image, out) + "\n")
    except OSError as error:
        parser.error(shown(error))

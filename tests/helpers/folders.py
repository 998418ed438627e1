"""Help for tests: small annotated data sets on disk, one function per format. The images show noise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.structures.categories import load_categories

SIZE = (20, 30)  # height, width


def write_image(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_random_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    return write_image(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, tree: object) -> Path:
    return write_text(path, json.dumps(tree))


def plane(*boxes: tuple[int, int, int, int, int], size: tuple[int, int] = SIZE, fill: int = 0) -> np.ndarray:
    """A plane of `fill` with boxes (value, top, left, bottom, right), int64."""
    values_HW = np.full(size, fill, dtype=np.int64)
    for value, top, left, bottom, right in boxes:
        values_HW[top:bottom, left:right] = value
    return values_HW


def write_mask(path: Path, values_HW: np.ndarray) -> Path:
    return write_image(path, values_HW.astype(np.uint8 if values_HW.max() <= 255 else np.uint16))


def write_ids(path: Path, ids_HW: np.ndarray) -> Path:
    return write_image(path, np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16], axis=-1).astype(np.uint8))


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


# --- label maps -------------------------------------------------------------------------------------------------------


def label_maps(
    folder: Path,
    masks: list[np.ndarray],
    *,
    split: str = "train",
    kind: str = "labels",
    classes: str | None = "a\nb\nc\n",
) -> Path:
    for number, values_HW in enumerate(masks):
        write_random_image(folder / "images" / split / f"{number}.jpg", values_HW.shape[:2], seed=number)
        write_mask(folder / kind / split / f"{number}.png", values_HW)
    if classes is not None:
        write_text(folder / "classes.txt", classes)
    return folder


# --- COCO -------------------------------------------------------------------------------------------------------------

THINGS = [{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}]
ALL = [
    {"id": 3, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 17, "name": "dog", "isthing": 1, "color": [4, 5, 6]},
    {"id": 200, "name": "sky", "isthing": 0, "color": [7, 8, 9]},
]


def image_entry(key: int | str, file_name: str, size: tuple[int, int] = SIZE) -> dict:
    return {"id": key, "file_name": file_name, "height": size[0], "width": size[1]}


def annotation(key: int, image_id: int | str, category_id: int, segmentation: object, **more: object) -> dict:
    return {
        "id": key,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "iscrowd": 0,
        "area": 1.0,
        **more,
    }


def coco_instances(
    folder: Path,
    annotations: list[dict],
    *,
    name: str = "val2017",
    images: str = "val2017",
    categories: object = THINGS,
    count: int = 1,
) -> Path:
    """Images 1.jpg, 2.jpg, … with the ids 1, 2, …"""
    entries = [image_entry(n, f"{n}.jpg") for n in range(1, count + 1)]
    for entry in entries:
        write_random_image(folder / images / entry["file_name"], seed=entry["id"])
    tree = {"images": entries, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations" / f"instances_{name}.json", tree)
    return folder


IDS = plane((70000, 0, 0, 10, 10), (300, 0, 10, 10, 20), (5, 10, 0, 20, 25))  # a cat, a crowd of dogs, the sky, void
SEGMENTS = [
    {"id": 70000, "category_id": 3, "iscrowd": 0, "area": 100},
    {"id": 300, "category_id": 17, "iscrowd": 1, "area": 100},
    {"id": 5, "category_id": 200, "iscrowd": 0, "area": 250},
]


def coco_panoptic(
    folder: Path,
    *,
    name: str = "val2017",
    ids_HW: np.ndarray = IDS,
    segments: list[dict] = SEGMENTS,
    pngs: str = "",
    categories: object = ALL,
) -> Path:
    write_random_image(folder / name / "1.jpg")
    write_ids(folder / (pngs or f"panoptic_{name}") / "1.png", ids_HW)
    tree = {
        "images": [image_entry(1, "1.jpg")],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": categories,
    }
    write_json(folder / "annotations" / f"panoptic_{name}.json", tree)
    return folder


def scenes_as_coco(folder: Path, count: int = 4, size: tuple[int, int] = (150, 260)) -> Path:
    """Generated scenes in the layout of COCO's val2017, panoptic and instances, with all categories of COCO.

    The things of a scene become COCO's first things, its stuff the first stuff.
    """
    data, table = synthetic_dataset("val", count, size=size, objects=(5, 9)), load_categories("coco-panoptic")
    kinds = {is_thing: [c for c in table if c.isthing == is_thing] for is_thing in (True, False)}
    order = {c.name: n for is_thing in kinds for n, c in enumerate(c for c in data.categories if c.isthing == is_thing)}
    images, rows, objects = [], [], []
    for number, record in enumerate(data.records, start=1):
        panoptic, segments = record.read_annotation(), []
        for segment in panoptic.segments:
            ours = data.categories[segment.label]
            category, mask = kinds[ours.isthing][order[ours.name]].id, np.asfortranarray(panoptic.ids_HW == segment.id)
            if not mask.any():
                continue
            area = int(mask.sum())
            segments.append({"id": segment.id, "category_id": category, "iscrowd": 0, "area": area})
            if ours.isthing:
                rle = coco_mask.encode(mask.astype(np.uint8))
                shape = {"size": list(mask.shape), "counts": rle["counts"].decode()}
                box = coco_mask.toBbox(rle).tolist()
                objects.append(annotation(len(objects) + 1, number, category, shape, bbox=box) | {"area": area})
        write_image(folder / f"val2017/{number}.png", record.read_image())
        write_ids(folder / f"panoptic_val2017/{number}.png", np.asarray(panoptic.ids_HW, np.int64))
        images.append(image_entry(number, f"{number}.png", size))
        rows.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    named = [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)} for c in table]
    things = [{"id": c["id"], "name": c["name"]} for c in named if c["isthing"]]
    tree = {"images": images, "annotations": rows, "categories": named}
    write_json(folder / "annotations/panoptic_val2017.json", tree)
    write_json(folder / "annotations/instances_val2017.json", {**tree, "annotations": objects, "categories": things})
    return folder


# --- others -----------------------------------------------------------------------------------------------------------


def cityscapes(folder: Path, split: str = "val") -> Path:
    """Road, sky that is a bare label id, two cars, a group of persons, a caravan (not evaluated), void."""
    ids = plane(
        (7, 10, 0, 20, 30),
        (23, 0, 0, 5, 30),
        (26000, 10, 0, 14, 5),
        (26001, 10, 5, 14, 8),
        (24, 15, 0, 18, 9),
        (29000, 15, 20, 18, 25),
    )
    stem = f"{split}/aachen/aachen_000000_000019"
    write_random_image(folder / f"leftImg8bit/{stem}_leftImg8bit.png")
    write_mask(folder / f"gtFine/{stem}_gtFine_instanceIds.png", ids)
    write_mask(folder / f"gtFine/{stem}_gtFine_labelIds.png", np.where(ids < 1000, ids, ids // 1000))
    return folder


def ade20k(folder: Path) -> Path:
    write_random_image(folder / "images/training/ADE_train_00000001.jpg")
    write_mask(folder / "annotations/training/ADE_train_00000001.png", plane((1, 0, 0, 5, 30), (150, 5, 0, 10, 30)))
    write_text(folder / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n")
    return folder


def yolo_seg(folder: Path, lines: str = "1 0.1 0.2 0.5 0.2 0.5 0.7 0.1 0.7\n", **description: object) -> Path:
    for split in ("train", "val"):
        write_random_image(folder / f"images/{split}/a.jpg")
        write_random_image(folder / f"images/{split}/empty.jpg", seed=1)
        write_text(folder / f"labels/{split}/a.txt", lines)
    tree = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}, **description}
    write_text(folder / "data.yaml", yaml.safe_dump(tree))
    return folder


def labelme(folder: Path, shapes: list[dict] | None = None, **more: object) -> Path:
    """One image with a polygon of a dog, 12 by 10 pixels, or other shapes."""
    points = [[3, 4], [15, 4], [15, 14], [3, 14]]
    polygon = {"label": "dog", "shape_type": "polygon", "points": points, "group_id": None, "flags": {}}
    tree = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [polygon] if shapes is None else shapes,
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        **more,
    }
    write_random_image(folder / "a.jpg")
    write_json(folder / "a.json", tree)
    return folder


def roboflow(folder: Path) -> Path:
    pairs = [("cells", "none"), ("red", "cells"), ("white", "cells")]
    categories = [{"id": key, "name": name, "supercategory": above} for key, (name, above) in enumerate(pairs)]
    for split in ("train", "valid"):
        write_random_image(folder / split / "1.jpg")
        tree = {
            "images": [image_entry(0, "1.jpg")],
            "annotations": [annotation(0, 0, 2, [rectangle(1, 2, 11, 7)])],
            "categories": categories,
        }
        write_json(folder / split / "_annotations.coco.json", tree)
    return folder


def mapillary(folder: Path) -> Path:
    write_random_image(folder / "validation/images/a.jpg")
    write_mask(folder / "validation/v1.2/labels/a.png", plane((13, 0, 0, 5, 30), (64, 5, 0, 10, 30), fill=65))
    return folder


def tree_without_times(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder of results, without the durations that they hold."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): _without_times(path.read_bytes()) for path in files}


def _without_times(content: bytes) -> bytes:
    return re.sub(rb'(,\s*)?"(times_ms|crc32)": ?(\{[^}]*\}|"[0-9a-f]*")', b"", content)

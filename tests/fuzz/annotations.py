"""Targets of all formats of annotations: opened, and every record read for every task; checked and converted."""

from __future__ import annotations

import base64
import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from helpers import folders, image_kinds

from m2f_cli.config.schema import Component
from m2f_cli.data.formats.base import NoTask
from m2f_cli.data.formats.shapes import parse_shape
from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.data.records import labels_of
from m2f_cli.data.training_set import SampleIndex, TrainingSet, drop_empty
from m2f_cli.data.transforms import build_transforms
from m2f_cli.dataset_tools.check.report import open_splits, report
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.errors import M2FError
from m2f_cli.structures.categories import load_categories
from m2f_cli.structures.rle import as_text, encode_mask, encode_shape

from .harness import Target
from .mutators import Sample, folder_mutants, mutate_embedded, remove, value

TASKS = (None, "semantic", "instance", "panoptic")
TABLES = {
    ".json": 8.0,
    ".yaml": 4.0,
    ".txt": 3.0,
}  # how often such files are chosen
STEPS = [
    Component(name="large_scale_jitter", size=32, min_scale=0.1, max_scale=2.0),
    Component(name="flip", p=0.5),
    Component(name="crop", height=24, width=24, category_max_area=1.0),
    Component(name="drop_vanished"),
]
CONVERTED = ("coco-instance", "label-maps", "labelme", "webdataset")


# --- samples ----------------------------------------------------------------------------------------------------------


def _instances(folder: Path) -> None:
    mask_HW = np.zeros(folders.SIZE, np.uint8)
    mask_HW[2:9, 3:12] = 1
    packed, points = as_text(encode_mask(mask_HW)), [[1.5, 2], [11, 2], [11, 7.25]]
    counts = {"size": list(folders.SIZE), "counts": [10, 5, 585]}
    shapes = [[folders.rectangle(1, 2, 11, 7)], packed, counts, [points], [folders.rectangle(0, 0, 30, 20), points]]
    rows = [
        folders.annotation(number, 1 + number % 2, (3, 17)[number % 2], shape, iscrowd=int(shape is counts))
        for number, shape in enumerate(shapes)
    ]
    folders.coco_instances(folder, rows, count=2)


def _label_maps(folder: Path) -> None:
    masks = [folders.plane((1, 0, 0, 10, 10), (2, 10, 10, 20, 30)), folders.plane((255, 0, 0, 3, 3), (1, 5, 5, 9, 9))]
    for split in ("train", "val"):
        folders.label_maps(folder, masks, split=split)


def _label_maps_with_yaml(folder: Path) -> None:
    _label_maps(folder)
    remove(folder / "classes.txt")
    text = 'names: {0: a, 1: b, 2: c}\ncolors: [[1, 2, 3], "#ff8000", [7, 8, 9]]\nnum_classes: 3\nignore_index: 255\n'
    folders.write_text(folder / "classes.yaml", text)


def _class_table(folder: Path) -> None:
    _label_maps(folder)
    remove(folder / "classes.txt")
    text = "classes:\n- {id: 0, name: a, isthing: 0, color: [1, 2, 3]}\n- {id: 1, name: b}\n- {name: c, isthing: 1}\n"
    folders.write_text(folder / "classes.yaml", text)


def _shape(label: str, kind: str, points: list, **more: object) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def _labelme(folder: Path) -> None:
    mask = base64.b64encode(image_kinds.encoded(np.ones((3, 4), np.uint8) > 0, "PNG")).decode()
    shapes = [
        _shape("cat", "rectangle", [[10, 12], [2, 5]]),
        _shape("dog", "circle", [[15, 10], [15, 15]], group_id=1),
        _shape("dog", "mask", [[20, 6], [23, 8]], mask=mask, group_id=1),
        _shape("dog", "polygon", [[3, 4], [15, 4.5], [15, 14], [3, 14]], flags={"iscrowd": True}),
        _shape("cat", "line", [[0, 0], [5, 5]]),
        _shape("cat", "oriented_rectangle", [[0, 0], [4, 0], [4, 4], [0, 4]]),
    ]
    folders.labelme(folder, shapes)
    folders.write_text(folder / "labels.txt", "__ignore__\n_background_\ncat\ndog\n")


def _ade20k(folder: Path) -> None:
    folders.ade20k(folder)
    name, ids_HW = "ADE_train_00000001", folders.plane((3, 0, 0, 5, 30), (259, 5, 0, 10, 30))
    folders.write_ids(folder / f"ade20k_panoptic_train/{name}.png", ids_HW)
    things, all_classes = load_categories("ade20k-instance"), load_categories("ade20k")
    images = [folders.image_entry(name, f"{name}.jpg")]
    segments = [{"id": key, "category_id": all_classes[key % 7].id, "iscrowd": 0} for key in (3, 259)]
    rows = {
        "panoptic": [{"image_id": name, "file_name": f"{name}.png", "segments_info": segments}],
        "instance": [folders.annotation(1, name, things[2].id, [folders.rectangle(1, 2, 11, 7)])],
    }
    for task, table in {"panoptic": all_classes, "instance": things}.items():
        categories = [{"id": each.id, "name": each.name, "isthing": int(each.isthing)} for each in table]
        tree = {"images": images, "annotations": rows[task], "categories": categories}
        folders.write_json(folder / f"ade20k_{task}_train.json", tree)


def _jpeg() -> bytes:
    return image_kinds.encoded(np.random.default_rng(0).integers(0, 256, (*folders.SIZE, 3), dtype=np.uint8), "JPEG")


def _yolo(folder: Path) -> None:
    folders.yolo_seg(folder, "1 0.1 0.2 0.5 0.2 0.5 0.7 0.1 0.7\n0 0 0 1 0 1 1\n")


def _yolo_lists(folder: Path) -> None:
    folders.yolo_seg(folder, train="train.txt", val=["images/val"], nc=2)
    folders.write_text(folder / "train.txt", "./images/train/a.jpg\nimages/train/empty.jpg\n")


def _shards(folder: Path) -> None:
    """Shards with an index, of segments."""
    source = folder.with_name(f"{folder.name}-source")
    folders.coco_panoptic(source)
    remove(folder)
    convert(source, folder, "webdataset")
    remove(source)


def _shards_of_objects(folder: Path) -> None:
    """Shards without an index, of objects."""
    source = folder.with_name(f"{folder.name}-source")
    _instances(source)
    remove(folder)
    convert(source, folder, "webdataset", shard_size=1)
    remove(folder / "val" / "index.json")
    remove(source)


SAMPLES: dict[str, tuple[str | None, str, Callable[[Path], object]]] = {  # target: (format, split, sample)
    "ade20k": ("ade20k", "train", _ade20k),
    "cityscapes": ("cityscapes", "val", folders.cityscapes),
    "coco-instance": ("coco-instance", "val", _instances),
    "coco-panoptic": ("coco-panoptic", "val", folders.coco_panoptic),
    "label-maps": ("label-maps", "train", _label_maps),
    "label-maps-names": ("label-maps", "train", _label_maps_with_yaml),
    "label-maps-table": (None, "train", _class_table),
    "labelme": ("labelme", "train", _labelme),
    "mapillary": ("mapillary", "val", folders.mapillary),
    "roboflow-coco": ("roboflow-coco", "train", folders.roboflow),
    "webdataset": ("webdataset", "val", _shards),
    "webdataset-objects": ("webdataset", "val", _shards_of_objects),
    "yolo-seg": ("yolo-seg", "train", _yolo),
    "yolo-seg-lists": ("yolo-seg", "train", _yolo_lists),
}


# --- readers ----------------------------------------------------------------------------------------------------------


def read_split(name: str | None, split: str, path: Path) -> None:
    """Open a split for each task and read all of it. The first error is raised when all has been tried."""
    errors: list[M2FError] = []
    if name is None:
        detect(path)
    for task in TASKS:
        try:
            data = open_data(path, split, format=name, task=task)
        except NoTask:
            continue
        except M2FError as error:
            errors.append(error)
            continue
        for record in data.records:
            for read in (record.read_annotation, record.read_image, functools.partial(labels_of, record)):
                try:
                    read()
                except M2FError as error:
                    errors.append(error)
    if errors:
        raise errors[0]


def check(path: Path) -> None:
    """Do what `m2f data check` does."""
    opened, findings = open_splits(lambda split: open_data(path, split))
    json.dumps(report(opened, findings).to_dict(), allow_nan=False)


def train(path: Path) -> None:
    """Make the training samples of a split, as a training draws them."""
    data = open_data(path, SAMPLES[path.name][1])
    samples = TrainingSet(data, build_transforms(STEPS), data.task)
    for index in range(len(samples)):
        samples[SampleIndex(index, index)]
    labels = [labels_of(record) for record in drop_empty(data, data.task).records]
    if any(not 0 <= label < len(data.categories) for own in labels for label in own):
        raise AssertionError(f"{labels} are no classes")


def convert_to(formats: tuple[str, ...], path: Path) -> None:
    """Do what `m2f data convert` does. The format follows from the name of the folder of the sample."""
    for name in formats:
        try:
            convert(path, path.with_name(f"{path.name}-{name}"), name)
        finally:
            remove(path.with_name(f"{path.name}-{name}"))


# --- mutants ----------------------------------------------------------------------------------------------------------


def _embedded(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """LabelMe files whose embedded image or embedded mask is mutated."""
    place, images = folder / "sample", list(image_kinds.plain().values())
    place.mkdir()
    _labelme(place)
    tree = json.loads((place / "a.json").read_text())
    remove(place / "a.jpg")
    while True:
        image = base64.b64encode(rng.choice(images) if rng.random() < 0.5 else _jpeg()).decode()
        now = {**tree, "imageData": image, "shapes": [dict(shape) for shape in tree["shapes"]]}
        if rng.random() < 0.6:
            now["imageData"] = mutate_embedded(rng, image)
        else:
            now["shapes"][2]["mask"] = mutate_embedded(rng, rng.choice([now["shapes"][2]["mask"], image]))
        if rng.random() < 0.1:
            now["imageData"] = rng.choice([image[:-3], "data:image/png;base64," + image, value(rng), " " + image])
        if rng.random() < 0.3:
            now["imageHeight"] = now["imageWidth"] = None
        (place / "a.json").write_text(json.dumps(now))
        yield "embedded image or mask", place


def _any_sample(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """Mutants of the samples of all formats in turn."""
    samples = []
    for name, (_, _, make) in SAMPLES.items():
        (folder / name).mkdir()
        make(folder / name)
        samples.append(Sample(folder / name, TABLES))
    while True:
        sample = rng.choice(samples)
        yield f"{sample.folder.name}, {sample.mutate(rng)}", sample.folder
        sample.restore()


def _run_lengths(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """Shapes of objects: polygons, and run lengths as text and as numbers."""
    size = folders.SIZE
    mask_HW = np.random.default_rng(0).random(size) > 0.5
    packed = as_text(encode_mask(mask_HW))["counts"]
    path = folder / "shape.json"
    while True:
        letters = list(packed)
        for _ in range(rng.choice([0, 1, 1, 3, 20])):
            at = rng.randrange(len(letters))
            letters[at] = chr(rng.choice([*range(40, 128), 0, 255, 0x4E00, 0xD800]))
        text = "".join(letters[: rng.randrange(len(letters))] if rng.random() < 0.3 else letters)
        numbers = rng.choices([0, 1, 5, 100, 600, -1, 2**31, 2**62, 1.5, "3", None, True], k=rng.randrange(9))
        points = rng.choices([0, 1, 29, 30, -5, 12.5], k=rng.choice([6, 8, 7, 2, 0]))
        if points and rng.random() < 0.3:
            points[0] = rng.choice([1e9, 1e308, "x", None, float("nan"), [1, 2]])
        canvas = list(size)
        if rng.random() < 0.3:
            canvas = rng.choice([[30, 20], [20, 30, 1], value(rng), [0, 0], ["20", 30.0], [2**31, 2**31]])
        shape = rng.choice(
            [{"size": canvas, "counts": text}] * 3
            + [{"size": canvas, "counts": numbers}, [points], [points, points], points, value(rng)]
        )
        path.write_text(json.dumps(shape))
        yield "shape", path


def read_shape(path: Path) -> None:
    tree = json.loads(path.read_text())
    for size in (folders.SIZE, (1, 1), (0, 0)):
        try:
            shape = parse_shape(tree, size, str(path))
        except M2FError as error:
            refused = error
            continue
        if shape:
            encode_shape(shape, size)
        return
    raise refused


TARGETS = [
    *(
        Target(f"data {name}", folder_mutants(make, weights=TABLES), functools.partial(read_split, format, split))
        for name, (format, split, make) in SAMPLES.items()
    ),
    Target("data labelme-embedded", _embedded, functools.partial(read_split, "labelme", "train")),
    Target("data shapes", _run_lengths, read_shape, share=2.0),
    Target("data check", _any_sample, check),
    Target("data training", _any_sample, train),
    Target("data convert", _any_sample, functools.partial(convert_to, CONVERTED), "--separate"),
]

"""Real annotations for the metrics."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation
from m2f_cli.structures.categories import load_categories


class Pack:
    """The 80 annotated images of COCO in a data pack: `.folder`, `.categories`, `.names` (file stems)."""

    def __init__(self, folder):
        self.folder, self.categories = folder, load_categories("coco-panoptic")
        document = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
        self.records = {record["file_name"].removesuffix(".png"): record for record in document["annotations"]}
        self.names = list(self.records)

    def annotation(self, name: str) -> PanopticAnnotation:
        number = {category.id: label for label, category in enumerate(self.categories)}
        rgb = np.asarray(Image.open(self.folder / "panoptic_val2017" / f"{name}.png")).astype(np.int32)
        segments = [
            AnnotatedSegment(s["id"], number[s["category_id"]], bool(s["iscrowd"]))
            for s in self.records[name]["segments_info"]
        ]
        return PanopticAnnotation(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], segments)


@pytest.fixture(scope="session")
def coco_pack(shared_dir) -> Pack:
    return Pack(shared_dir / "data" / "coco_panoptic_160")


@pytest.fixture(scope="session")
def scenes() -> SimpleNamespace:
    """Ten generated scenes as annotated images, in every third of which the first thing is a crowd."""
    data = synthetic_dataset("val", 10, size=(150, 260), objects=(5, 9), task="panoptic")
    annotations = []
    for number, record in enumerate(data.records):
        annotation = record.read_annotation()
        things = [s.id for s in annotation.segments if data.categories[s.label].isthing]
        crowds = set(things[:1]) if number % 3 == 0 and len(things) > 1 else set()
        segments = [AnnotatedSegment(s.id, s.label, s.id in crowds) for s in annotation.segments]
        annotations.append(PanopticAnnotation(annotation.ids_HW.copy(), segments))
    return SimpleNamespace(annotations=annotations, categories=data.categories)


@pytest.fixture(scope="session", params=["scenes", pytest.param("coco", marks=pytest.mark.reference)])
def annotated(request) -> SimpleNamespace:
    """Ten annotated images, some with crowds: generated scenes, and real ones of COCO where the pack is there."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def coco(coco_pack):
    """Ten images of the pack, three of them with crowds: `.truths`, `.categories`, `.names` and `.folder`."""
    crowds = {name: sum(s["iscrowd"] for s in record["segments_info"]) for name, record in coco_pack.records.items()}
    names = sorted(crowds, key=lambda name: -crowds[name])[:10]
    annotations = [coco_pack.annotation(name) for name in names]
    return SimpleNamespace(
        annotations=annotations, categories=coco_pack.categories, names=names, folder=coco_pack.folder
    )

"""Real annotations for the metrics."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from m2f_cli.data.categories import load_categories
from m2f_cli.types import PanopticTruth, TrueSegment


@pytest.fixture(scope="session")
def coco(shared_dir):
    """Ten annotated pictures of COCO, three of them with crowds: `.truths`, `.categories`, `.names` (file stems) and
    `.folder` of the data pack."""
    folder = shared_dir / "data" / "coco_panoptic_160"
    categories = load_categories("coco-panoptic")
    number = {category.id: label for label, category in enumerate(categories)}
    document = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    records = sorted(document["annotations"], key=lambda r: -sum(s["iscrowd"] for s in r["segments_info"]))[:10]
    truths = []
    for record in records:
        rgb = np.asarray(Image.open(folder / "panoptic_val2017" / record["file_name"])).astype(np.int32)
        segments = [TrueSegment(s["id"], number[s["category_id"]], bool(s["iscrowd"])) for s in record["segments_info"]]
        truths.append(PanopticTruth(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2], segments))
    names = [record["file_name"].removesuffix(".png") for record in records]
    return SimpleNamespace(truths=truths, categories=categories, names=names, folder=folder)

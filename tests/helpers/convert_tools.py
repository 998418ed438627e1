"""Shared by the tests of `m2f data convert`: sources, and annotations as names and pixels."""

from __future__ import annotations

import numpy as np
from helpers.folders import (
    SIZE,
    annotation,
    coco_instances,
    plane,
    rectangle,
)
from pycocotools import mask as coco_mask

from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.transforms.geometry import mask_of
from m2f_cli.structures.annotations import PanopticAnnotation, SemanticAnnotation

VALUES = plane((1, 0, 0, 10, 30), (2, 5, 5, 9, 9), (255, 15, 0, 20, 30))


def regions(annotation, categories):
    """What an annotation says, in names and pixels: independent of how the format numbers things."""
    name = [category.name for category in categories]
    if isinstance(annotation, SemanticAnnotation):
        return {
            (name[v], (annotation.labels_HW == v).tobytes())
            for v in np.unique(annotation.labels_HW)
            if v != annotation.ignore
        }
    if isinstance(annotation, PanopticAnnotation):
        return sorted((name[s.label], s.iscrowd, (annotation.ids_HW == s.id).tobytes()) for s in annotation.segments)
    return [(name[o.label], o.iscrowd, mask_of(o, annotation.size).astype(bool).tobytes()) for o in annotation.objects]


def read(folder, split="val", **options):
    data = open_data(folder, split, **options)
    return {record.name: regions(record.read_annotation(), data.categories) for record in data.records}


def images(folder, split="val"):
    return {record.name: record.read_image().tobytes() for record in open_data(folder, split).records}


def kinds(done):
    return {loss.kind: loss.count for loss in done.losses}


def hollow():
    mask_HW = np.zeros(SIZE, np.uint8)
    mask_HW[2:12, 3:20] = 1
    mask_HW[4:8, 6:12] = 0
    mask_HW[15:18, 25:28] = 1
    return mask_HW


def rle(mask_HW):
    packed = coco_mask.encode(np.asfortranarray(mask_HW))
    return {"size": list(SIZE), "counts": packed["counts"].decode()}


def objects(folder):
    """A triangle with tenths, a mask with a hole and a second part, two parts, a crowd; and an image of nothing."""
    crowd_HW = np.zeros(SIZE, np.uint8)
    crowd_HW[16:20, 0:20] = 1
    return coco_instances(
        folder,
        [
            annotation(1, 1, 17, [[3.3, 4.1, 15.2, 4.7, 9.9, 14.6]], area=61.5),
            annotation(2, 1, 3, rle(hollow())),
            annotation(3, 1, 3, [rectangle(20, 1, 24, 5), rectangle(26, 1, 29, 5)]),
            annotation(4, 1, 3, rle(crowd_HW), iscrowd=1),
        ],
        count=2,
    )

"""Counts and areas of the annotated regions of one image. Its pixels are not kept."""

from __future__ import annotations

from dataclasses import dataclass

from pycocotools import mask as coco_mask

from ...structures.annotations import Annotation, PanopticAnnotation, SemanticAnnotation
from ...structures.rle import encode_shape
from ...structures.run_lengths import areas_in


@dataclass(frozen=True)
class Regions:
    """Annotated regions of an image. `labels` and `areas` are in one order.

    Attributes:
        labels: class numbers of the regions that are not crowds.
        areas: areas of these regions in pixels.
        crowds: number of crowds.
        hidden: number of regions, including crowds, without a pixel.
        ignored: number of pixels without a class.
    """

    labels: tuple[int, ...]
    areas: tuple[int, ...]
    crowds: int = 0
    hidden: int = 0
    ignored: int = 0


def regions_of(annotation: Annotation) -> Regions:
    """Count and measure the regions of an annotation. In a semantic one, each class that is present is one region."""
    if isinstance(annotation, SemanticAnnotation):
        areas = areas_in(annotation.labels_HW)
        ignored = areas.pop(int(annotation.ignore), 0)
        return Regions(tuple(areas), tuple(areas.values()), ignored=ignored)
    if isinstance(annotation, PanopticAnnotation):
        areas = areas_in(annotation.ids_HW)
        regions = [(segment, areas.get(segment.id, 0)) for segment in annotation.segments]
        ignored = areas.get(0, 0)
    else:
        regions = [
            (item, int(coco_mask.area(encode_shape(item.shape, annotation.size)))) for item in annotation.objects
        ]
        ignored = 0
    plain = [(region.label, area) for region, area in regions if not region.iscrowd]
    hidden = sum(area == 0 for _, area in regions)
    labels, areas = zip(*plain, strict=True) if plain else ((), ())
    return Regions(labels, areas, crowds=len(regions) - len(plain), hidden=hidden, ignored=ignored)

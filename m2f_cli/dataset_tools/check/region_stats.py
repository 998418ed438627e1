"""The annotated regions of one image, counted and measured; nothing of its pixels is kept."""

from __future__ import annotations

from dataclasses import dataclass

from pycocotools import mask as coco_mask

from ...structures.annotations import Annotation, PanopticAnnotation, SemanticAnnotation
from ...structures.rle import encode_shape
from ...structures.run_lengths import areas_in


@dataclass(frozen=True)
class Regions:
    """The annotated regions of an image that are no crowds: class numbers and areas in pixels, in one order.

    crowds: how many more are crowds. hidden: regions, crowds among them, without a pixel. ignored: pixels without a
    class.
    """

    labels: tuple[int, ...]
    areas: tuple[int, ...]
    crowds: int = 0
    hidden: int = 0
    ignored: int = 0


def regions_of(annotation: Annotation) -> Regions:
    """Count and measure the regions of an annotation; of a semantic one, each class that is present is one region."""
    if isinstance(annotation, SemanticAnnotation):
        areas = areas_in(annotation.labels_HW)
        ignored = areas.pop(int(annotation.ignore), 0)
        return Regions(tuple(areas), tuple(areas.values()), ignored=ignored)
    if isinstance(annotation, PanopticAnnotation):
        areas = areas_in(annotation.ids_HW)
        found = [(segment, areas.get(segment.id, 0)) for segment in annotation.segments]
        ignored = areas.get(0, 0)
    else:
        found = [(item, int(coco_mask.area(encode_shape(item.shape, annotation.size)))) for item in annotation.objects]
        ignored = 0
    plain = [(region.label, area) for region, area in found if not region.iscrowd]
    hidden = sum(area == 0 for _, area in found)
    labels, areas = zip(*plain, strict=True) if plain else ((), ())
    return Regions(labels, areas, crowds=len(found) - len(plain), hidden=hidden, ignored=ignored)

"""A short look at a data set: its size, and what a few of its images hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...data.records import Record
from .inspect_image import look_at

Item = TypeVar("Item")


@dataclass(frozen=True)
class Glimpse:
    """Numbers of a split.

    Attributes:
        images: number of images.
        classes: number of classes.
        looked_at: number of images that were read.
        objects: number of annotated objects in those.
        problems: reasons why some of those cannot be used.
    """

    images: int
    classes: int
    looked_at: int
    objects: int
    problems: tuple[str, ...] = ()


def evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` items, spread evenly."""
    count = min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def glimpse(records: Sequence[Record], num_classes: int, limit: int) -> Glimpse:
    """Read some of the images and their annotations.

    Args:
        limit: largest number of images to read.
    """
    looks = [look_at(record, num_classes) for record in evenly(records, limit)]
    objects = sum(len(look.regions.labels) for look in looks if look.regions is not None)
    problems = tuple(look.problem.message for look in looks if look.problem is not None)
    return Glimpse(len(records), num_classes, len(looks), objects, problems)

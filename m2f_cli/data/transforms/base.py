"""A sample, and what all steps of an augmentation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from ...errors import ConfigError
from ...structures.annotations import Annotation

Size: TypeAlias = tuple[int, int]


@dataclass
class Sample:
    """An image and the annotation about it, of one size.

    image_HW3: uint8, RGB.
    canvas: least (height, width) of the batch that the image enters. What lies between the image's lower right
        border and the canvas is 0 after normalisation and belongs to no target.
    """

    image_HW3: np.ndarray
    annotation: Annotation
    canvas: Size = (0, 0)

    @property
    def size(self) -> Size:
        return self.image_HW3.shape[:2]


class Transform(Protocol):
    """One step of an augmentation. It returns a new sample and leaves the arrays of the old one as they were."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"The augmentation makes no sense: {otherwise}.")

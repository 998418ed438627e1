"""Sample, and the interface that all steps of an augmentation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from ...errors import ConfigError
from ...structures.annotations import Annotation

Size: TypeAlias = tuple[int, int]


@dataclass
class Sample:
    """Image and its annotation, both of one size.

    Attributes:
        image_HW3: uint8, RGB.
        annotation: the annotation of the image.
        canvas: least (height, width) of the batch that the image enters. The area between the image's lower right
            border and the canvas is 0 after normalisation and belongs to no target.
    """

    image_HW3: np.ndarray
    annotation: Annotation
    canvas: Size = (0, 0)

    @property
    def size(self) -> Size:
        return self.image_HW3.shape[:2]


class Transform(Protocol):
    """Protocol of an augmentation step. A step returns a new sample and does not change the arrays of the old one."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"The augmentation makes no sense: {otherwise}.")

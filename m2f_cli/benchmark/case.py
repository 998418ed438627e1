"""What is to be timed, in words that travel between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from torch import nn

from ..config.published import crop_of
from ..config.schema import Config
from ..errors import ConfigError
from ..inference.load import ModelOptions
from ..inference.mask_rendering import Size
from ..inference.preprocess import resized_shape
from .stages import Method, Stages

DEFAULT_PRESET = "coco-panoptic-swin-t"
# Images of the data sets that the shipped rows are tested on: the usual size, (height, width).
IMAGE_SIZES: dict[str, Size] = {
    "cityscapes": (1024, 2048),
    "ade20k": (512, 683),
    "ade20k-full": (512, 683),
    "coco": (480, 640),
    "coco-stuff-10k": (480, 640),
    "mapillary-vistas": (2448, 3264),
}
USUAL_SIZE = (480, 640)


@dataclass(frozen=True)
class Case:
    """One piece of work.

    what: a name of the group "workloads" in plugins.py.
    preset: random weights of this preset. model: these weights instead.
    size: (height, width) of the image, which the network then sees as it is; None: a usual image of the preset's
        data set, resized as the preset is tested (or the crop that it is trained on).
    image: (height, width) of the image, which is resized as the preset is tested; `size` wins over it.
    batch: images of one forward pass. images: of one run of "predict" and "eval".
    source: a folder of images for "predict"; None: generated ones.
    engine: what runs an exported file (`inference.engines`); None: what its name says.
    threads: of PyTorch; None leaves its choice.
    keep_memory: the process keeps what it freed (`m2f_cli.runtime.allocator`).
    trust_code: whether the preset, or what came with the weights, may name code.
    """

    what: str = "forward"
    preset: str | None = None
    model: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    size: Size | None = None
    image: Size | None = None
    batch: int = 1
    images: int = 4
    source: str | None = None
    threads: int | None = None
    compile: bool = False
    keep_memory: bool = False
    engine: str | None = None
    trust_code: bool = False

    @property
    def is_random(self) -> bool:
        return self.model is None

    @property
    def model_options(self) -> ModelOptions:
        """The model with its own weights."""
        return ModelOptions(
            self.model,
            device=self.device,
            precision=self.precision,
            engine=self.engine,
            trust_code=self.trust_code,
        )


class Workload(Protocol):
    """Something that can be done again and again: the base of all of them, for what most have not.

    images: images of one run. parts: modules whose time is a stage of its own; empty where none can be watched.
    methods: of which calls are one, by the name of the stage. sizes: (height, width) of the images and of what the
    network sees of each, where those are not the case's own.
    """

    images: int
    parts: Mapping[str, nn.Module] = MappingProxyType({})
    methods: Mapping[str, Sequence[Method]] = MappingProxyType({})
    sizes: list[tuple[Size, Size]] | None = None

    def touch(self) -> None:
        """The same on a few pixels: imports and first calls are no part of what a run needs."""

    def run(self, stages: Stages) -> None: ...

    def answer(self) -> dict[str, np.ndarray]:
        """What a run gives, to compare: floats by largest difference, whole numbers by share. Nothing by default."""
        return {}


def image_size(case: Case, config: Config) -> Size:
    """(height, width) of the image."""
    return case.size or case.image or IMAGE_SIZES.get(config.data.dataset, USUAL_SIZE)


def network_size(case: Case, config: Config, fixed: Size | None = None, image: Size | None = None) -> Size:
    """(height, width) that the network sees in inference, with padding; `fixed` of an exported file, of the case's
    image unless it is another `picture`.

    Raises:
        ConfigError: a size is asked for that is not the file's.
    """
    if fixed is not None:
        if case.size not in (None, fixed):
            raise ConfigError(
                f"The file takes images of {fixed[0]} x {fixed[1]}, not of {case.size[0]} x {case.size[1]}.",
                hint="Leave --size out, or export the model for that size.",
            )
        return fixed
    asked = case.size if image is None else None
    resized = asked or resized_shape(*(image or image_size(case, config)), config.test.resize)
    divisor = max(1, config.test.size_divisor)
    return tuple(-(-edge // divisor) * divisor for edge in resized)


def training_size(case: Case, config: Config) -> Size:
    """(height, width) that the network sees in training: the crop, or a whole image where there is none."""
    crop = crop_of(config)
    if case.size or crop is None:
        return network_size(case, config)
    height, width = map(int, crop.split("x"))
    return height, width

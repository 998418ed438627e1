"""Description of the work to time. It can be sent to another process."""

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
from ..inference.preprocess import padded_shape, resized_shape
from .stages import Method, Stages

DEFAULT_PRESET = "coco-panoptic-swin-t"
# Data set of a shipped preset → usual size of its images, (height, width).
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
    """A piece of work to time.

    Attributes:
        what: a name of the group "workloads" in plugins.py.
        preset: preset whose network is timed with random weights.
        model: weights to time instead of a preset.
        device: name of the device, or "auto".
        precision: number format of the forward pass.
        size: (height, width) of the image, which the network then sees unchanged. None: a usual image of the
            preset's data set, resized as the preset is tested (or the crop that it is trained on).
        image: (height, width) of the image, which is resized as the preset is tested. `size` wins over it.
        batch: images of one forward pass.
        images: images of one run of "predict" and "eval".
        source: folder of images for "predict". None: generated images.
        threads: threads of PyTorch. None: PyTorch's default.
        compile: compile the network.
        keep_memory: keep freed memory in the process (`m2f_cli.runtime.allocator`).
        engine: engine of an exported file (`inference.engines`). None: chosen by the name of the file.
        trust_code: allow the preset, or the configuration beside the weights, to name code.
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
        """Options to open the model with its own weights."""
        return ModelOptions(
            self.model,
            device=self.device,
            precision=self.precision,
            engine=self.engine,
            trust_code=self.trust_code,
        )


class Workload(Protocol):
    """Base class of work that can be done again and again. It has the defaults of optional members.

    Attributes:
        images: images of one run.
        parts: modules whose time is a stage, by the name of the stage. Empty if none can be watched.
        methods: methods whose calls are a stage, by the name of the stage.
        sizes: (height, width) of each image and of the network's input. None: the sizes of the case.
    """

    images: int
    parts: Mapping[str, nn.Module] = MappingProxyType({})
    methods: Mapping[str, Sequence[Method]] = MappingProxyType({})
    sizes: list[tuple[Size, Size]] | None = None

    def touch(self) -> None:
        """Run the same work on a few pixels, so that imports and first calls are no part of a timed run."""

    def run(self, stages: Stages) -> None: ...

    def answer(self) -> dict[str, np.ndarray]:
        """Return the outputs of the last run, to compare them with a peer's. The default has none."""
        return {}


def image_size(case: Case, config: Config) -> Size:
    """Return the size of the image (height, width)."""
    return case.size or case.image or IMAGE_SIZES.get(config.data.dataset, USUAL_SIZE)


def network_size(case: Case, config: Config, fixed: Size | None = None, image: Size | None = None) -> Size:
    """Return the size of the network's input in inference (height, width), with padding.

    Args:
        fixed: the only input size of an exported file, (height, width).
        image: (height, width) of another image than the case's.

    Raises:
        ConfigError: the case asks for another size than `fixed`.
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
    least = 1 if asked else config.test.resize.fit or 1
    return padded_shape(*resized, max(1, config.test.size_divisor), least)


def training_size(case: Case, config: Config) -> Size:
    """Return the size of the network's input in training (height, width): the crop, or a whole image without one."""
    crop = crop_of(config)
    if case.size or crop is None:
        return network_size(case, config)
    height, width = map(int, crop.split("x"))
    return height, width

"""Features of a frozen backbone, kept in files: computed once for an image, and read again in later epochs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from ..config.schema import Component, Config
from ..data.records import DataSet
from ..data.training_set import read
from ..data.transforms import Sample, Transform, build_transforms
from ..errors import ConfigError
from ..model.mask_classifier import MaskClassifier, is_frozen
from ..runtime.files import atomic, open_to_read
from ..structures.predictions import Tokens
from ..version import __version__
from ..weights.trained_only import digest
from .options import TrainOptions

Features: TypeAlias = Mapping[int, Tensor] | Tokens
DRAWS = 16  # results of a step of the augmentation that are compared, to see whether it is random
IMAGES = 2  # with each of so many images
LARGEST_HEADER = 100_000  # bytes of a file that are no features
_CHANNELS_LAST = " BHWC"
_LAYOUT = "tokens"  # (prefix tokens, rows, columns) of a file of tokens; its levels are numbered, those of maps strides


@dataclass(frozen=True)
class Layout:
    """Shapes and types of the features of one image.

    Attributes:
        levels: shape (1, …) and type by stride, or of tokens by number.
        grid: number of prefix tokens, rows and columns; empty where levels are maps.
    """

    levels: Mapping[int, tuple[tuple[int, ...], torch.dtype]]
    grid: tuple[int, ...]


class FeatureCache:
    """Files of the features of one backbone.

    The name of a file is a hash of all that the features depend on: the normalised and padded image, the weights and
    the description of the backbone, and the number format. Its content is a SHA-256, and the tensors that it is of.

    Args:
        folder: where they are. Several runs may share it.
        backbone: description of the backbone.
    """

    def __init__(self, folder: Path, backbone: Component):
        self.folder, self.description = folder, backbone.model_dump_json()
        self.weights: str | None = None  # hashed when it is first needed: a resumed run loads them late
        self.layouts: dict[torch.Size, Layout] = {}

    @torch.compiler.disable
    def __call__(self, backbone: nn.Module, images_BCHW: Tensor) -> Features:
        """Return the features of a batch. Those of images that have no file, or a broken one, are computed."""
        if self.weights is None:
            self.weights = digest(backbone.state_dict())
        if images_BCHW.shape[1:] not in self.layouts:  # known from one image: files may be somebody else's
            self.layouts[images_BCHW.shape[1:]] = _layout(backbone(images_BCHW[:1]))
        layout = self.layouts[images_BCHW.shape[1:]]
        paths = [self.folder / f"{self._key(image_CHW)}.features" for image_CHW in images_BCHW]
        found = {i: each for i, path in enumerate(paths) if (each := read_features(path, layout)) is not None}
        missing = [i for i in range(len(paths)) if i not in found]
        if missing:
            computed = backbone(images_BCHW if len(missing) == len(paths) else images_BCHW[missing])
            for row, i in enumerate(missing):
                tensors = _row(computed, row)
                found[i] = _unpacked(tensors)
                write_features(paths[i], tensors)
        return _joined([found[i] for i in range(len(paths))], images_BCHW.device)

    def _key(self, image_CHW: Tensor) -> str:
        kind = image_CHW.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image_CHW.dtype
        said = (__version__, self.description, self.weights, precision, image_CHW.dtype, tuple(image_CHW.shape))
        key = hashlib.sha256(repr(said).encode())
        key.update(image_CHW.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return key.hexdigest()[:40]


def write_features(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their checksum, whole or not at all."""
    content = bytes_of(dict(tensors))
    with atomic(path) as part:
        part.write_bytes(hashlib.sha256(content).digest() + content)


def read_features(path: Path, layout: Layout) -> Features | None:
    """Read the features of one image that `write_features` wrote; None if there is no such file, or it is broken.

    A file is broken, too, if its features are of another layout or not finite.
    """
    most = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.levels.values()) + LARGEST_HEADER
    try:
        with open_to_read(path) as file:
            whole = file.read(most)
        checksum, content = whole[:32], whole[32:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        features = _unpacked(tensors_of(content))
    except (OSError, SafetensorError, ValueError, TypeError, IndexError):
        return None
    is_right = _layout(features) == layout and all(bool(level.isfinite().all()) for level in _levels(features).values())
    return features if is_right else None


def _row(features: Features, row: int) -> dict[str, Tensor]:
    """Return the features of one image of a batch, on the host."""
    if isinstance(features, Tokens):
        levels: dict[str, Tensor] = {str(i): level for i, level in enumerate(features.levels)}
        layout = {_LAYOUT: torch.tensor([features.num_prefix, *features.grid])}
    else:
        levels, layout = dict(_in_order_of_memory(stride, level) for stride, level in features.items()), {}
    return {name: level[row : row + 1].cpu().contiguous() for name, level in levels.items()} | layout


def _in_order_of_memory(stride: int, map_BCHW: Tensor) -> tuple[str, Tensor]:
    """Return a name and a map whose last dimension is the one that is last in memory: the decoder rounds by it."""
    is_last = map_BCHW.is_contiguous(memory_format=torch.channels_last) and not map_BCHW.is_contiguous()
    return (f"{stride}{_CHANNELS_LAST}", map_BCHW.movedim(1, -1)) if is_last else (str(stride), map_BCHW)


def _unpacked(tensors: Mapping[str, Tensor]) -> Features:
    """Return the features of one image from what `_row` made of them.

    Raises:
        ValueError, TypeError, IndexError: the tensors are others.
    """
    levels = {}
    for name in sorted(tensors.keys() - {_LAYOUT}, key=lambda name: int(name.removesuffix(_CHANNELS_LAST))):
        is_last = name.endswith(_CHANNELS_LAST)
        levels[int(name.removesuffix(_CHANNELS_LAST))] = tensors[name].movedim(-1, 1) if is_last else tensors[name]
    if _LAYOUT not in tensors:
        return levels
    num_prefix, rows, columns = tensors[_LAYOUT].tolist()
    return Tokens(list(levels.values()), num_prefix, (rows, columns))


def _levels(features: Features) -> Mapping[int, Tensor]:
    return dict(enumerate(features.levels)) if isinstance(features, Tokens) else features


def _layout(features: Features) -> Layout:
    levels = {number: (tuple(level.shape), level.dtype) for number, level in _levels(features).items()}
    grid = (features.num_prefix, *features.grid) if isinstance(features, Tokens) else ()
    return Layout(levels, grid)


def _joined(images: Sequence[Features], device: torch.device) -> Features:
    """Return the features of a batch from those of its images."""
    first = images[0]
    numbers = _levels(first)
    levels = {i: torch.cat([_levels(image)[i] for image in images]).to(device, non_blocking=True) for i in numbers}
    if isinstance(first, Tokens):
        return Tokens(list(levels.values()), first.num_prefix, first.grid)
    return levels


# --- when it is of use ------------------------------------------------------------------------------------------------


def cache_features(model: MaskClassifier, settings: Config, data: DataSet, options: TrainOptions) -> None:
    """Let a network keep the features of its frozen backbone in `options.cache_features`; without it, do nothing.

    Raises:
        ConfigError: the backbone is trained, the augmentation is random, or the folder is a file.
    """
    folder = options.cache_features
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--cache-features {folder} is no folder.", hint="Give a folder, which may be new.")
    if not is_frozen(model.backbone):
        lora = " LoRA trains it." if settings.model.backbone.lora is not None else ""
        raise ConfigError(
            f"--cache-features keeps the features of a backbone that never changes; this one is trained.{lora}",
            hint="Add --freeze backbone, or leave --cache-features out.",
        )
    steps = build_transforms(settings.train.augment, trust_code=options.trust_code)
    names = [component.name for component in settings.train.augment]
    samples = [read(record) for record in data.records[:IMAGES]]
    random_steps = [names[i] for i in range(len(steps)) if _is_random(steps, i, samples)]
    if random_steps:
        raise ConfigError(
            f"--cache-features needs images that repeat; these steps of train.augment are random: "
            f"{', '.join(random_steps)}.",
            hint="Take them out, or leave --cache-features out. A resize to one size and padding are not random.",
        )
    model.feature_cache = FeatureCache(folder, settings.model.backbone)


def _is_random(steps: Sequence[Transform], number: int, samples: Sequence[Sample]) -> bool:
    """Return True if a step makes different images of one image, after the steps before it."""
    for sample in samples:
        for step in steps[:number]:
            sample = step(sample, np.random.default_rng(0))
        first, *others = (steps[number](sample, np.random.default_rng(seed)) for seed in range(DRAWS))
        if any(not np.array_equal(other.image_HW3, first.image_HW3) for other in others):
            return True
    return False

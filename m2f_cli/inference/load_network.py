"""Loading of a network with its weights, configuration and classes from a reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from .. import model as networks
from .. import weights
from ..config.schema import Config, DataConfig, ModelConfig, ResizeConfig, TestConfig
from ..errors import WeightsError, about
from ..model import MaskClassifier
from ..runtime import random_state
from ..structures import Task
from ..structures.categories import Categories, class_tables, from_names, load_categories
from ..weights import Checkpoint, Progress
from ..weights.checkpoint import refuse_other_numbers
from ..weights.huggingface import IMAGENET
from ..weights.key_mapping import Shape
from ..weights.write_huggingface import write_folder


@dataclass
class LoadedModel:
    """Network in evaluation mode on the CPU, with its configuration and classes.

    Attributes:
        model: the network.
        config: its configuration.
        categories: its classes, in the order of their class numbers.
        source: origin of the weights.
        notes: assumptions that had to be made, in sentences for people.
    """

    model: MaskClassifier
    config: Config
    categories: Categories
    source: str
    notes: list[str]


def load_model(ref: str | Path, *, trust_code: bool = False, progress: Progress | None = None) -> LoadedModel:
    """Load the network that `ref` names, as in `weights.load`.

    The network is built without memory of its own and takes the tensors of the file. Those of a checkpoint of m2f stay
    mapped, so that the weights are in memory once.

    Args:
        ref: a preset, a file, a folder or a repository.
        trust_code: allow the checkpoint's configuration to name code.
        progress: called with records of a download.

    Raises:
        WeightsError: the file is missing, damaged or unsafe, or its weights do not fit.
        ConfigError: the checkpoint's configuration is invalid, or names code without `trust_code`.
    """
    checkpoint = weights.load(ref, progress=progress, trust_code=trust_code)
    notes = list(checkpoint.notes)
    with (
        about(checkpoint.source),
        random_state.kept(),
    ):  # a fresh network draws its weights, also those that are replaced
        categories, table = categories_of(checkpoint, notes)
        config = checkpoint.config or _assumed_config(checkpoint, categories, table, notes)
        network = _network(checkpoint, trust_code)
    return LoadedModel(network.eval(), config, categories, checkpoint.source, notes)


def _network(checkpoint: Checkpoint, trust_code: bool) -> MaskClassifier:
    return network_with(checkpoint.model, checkpoint.num_classes, checkpoint.state_for, trust_code=trust_code)


def network_with(
    config: ModelConfig,
    num_classes: int,
    state_for: Callable[[dict[str, Shape]], dict[str, Tensor]],
    *,
    trust_code: bool = False,
) -> MaskClassifier:
    """Build a network with given weights. It takes no memory until the weights are known to fit.

    Args:
        config: the network.
        num_classes: number of classes, without "no object".
        state_for: returns the tensors of these names and shapes, or raises.
        trust_code: allow the configuration to name code.

    Raises:
        WeightsError: the weights do not fit (from `state_for`).
        ConfigError: the configuration is invalid, or names code without `trust_code`.
    """
    network = networks.build_shapes(config, num_classes, trust_code=trust_code)
    expected = network.state_dict()
    state = state_for({name: tuple(tensor.shape) for name, tensor in expected.items()})
    for name, tensor in state.items():
        refuse_other_numbers(name, tensor, expected[name])
    network.load_state_dict(state, strict=True, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):
        # Some backbones of timm have constants that no file holds: they exist only in a network with memory.
        network = networks.build(config, num_classes, trust_code=trust_code)
        network.load_state_dict(state, strict=True)
    return network


def save_huggingface(folder: str | Path, model: MaskClassifier, config: Config, categories: Categories) -> Path:
    """Write a folder that `from_pretrained` of transformers' Mask2Former or MaskFormer loads.

    Raises:
        ExportError: transformers has no such network, or the folder exists already.
    """
    return write_folder(folder, model.state_dict(), config, categories)


# --- classes ----------------------------------------------------------------------------------------------------------


def categories_of(checkpoint: Checkpoint, notes: list[str]) -> tuple[Categories, str]:
    """Return the classes of a checkpoint and the name of their table ("" for none).

    Args:
        checkpoint: the checkpoint.
        notes: list that assumptions are appended to.

    Raises:
        WeightsError: the number of classes differs from the network's.
    """
    count = checkpoint.num_classes
    if checkpoint.categories is not None:
        categories, table = checkpoint.categories, ""
    elif checkpoint.config is not None:
        table = checkpoint.config.data.classes
        categories = load_categories(table)
    elif checkpoint.class_names is not None and len(checkpoint.class_names) == count:
        categories, table = categories_from_names(checkpoint.class_names, notes)
    else:
        categories, table = categories_from_count(count, notes)
    if len(categories) != count:
        raise WeightsError(
            f"{checkpoint.source} has {count} classes, but {table or 'its header'} names {len(categories)}.",
            hint="If the file is fine-tuned and only called like a released one, rename it.",
        )
    return categories, table


def categories_from_names(names: Sequence[str], notes: list[str]) -> tuple[Categories, str]:
    folded = [fold_name(name) for name in names]
    for table in class_tables():
        known = load_categories(table)
        if [fold_name(category.name) for category in known] == folded:
            return known, table
    notes.append("The file does not say which classes are countable: all were taken as things.")
    return from_names(_distinct(names)), ""


def categories_from_count(count: int, notes: list[str]) -> tuple[Categories, str]:
    fitting = [table for table in class_tables() if len(load_categories(table)) == count]
    if len(fitting) == 1:
        notes.append(f"The file does not name its {count} classes; {fitting[0]} has as many and was taken.")
        return load_categories(fitting[0]), fitting[0]
    notes.append(f"The file does not name its {count} classes: they are numbered, and all were taken as things.")
    return from_names([f"class {i}" for i in range(count)]), ""


def fold_name(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names with a number appended to repeated ones, because a class table needs unique names."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


# --- configuration ----------------------------------------------------------------------------------------------------


def _assumed_config(checkpoint: Checkpoint, categories: Categories, table: str, notes: list[str]) -> Config:
    """Return a configuration for weights that have none: input and test size of their processor, or common ones."""
    if checkpoint.input is None:
        notes.append("The file does not say how images are normalised: ImageNet's mean and deviation were assumed.")
    if checkpoint.resize is None:
        notes.append("The file does not say at what size it was tested: 800 by at most 1333 was assumed.")
    maskformer = checkpoint.model.method == "maskformer"
    per_pixel = checkpoint.model.decoder.name.startswith("per_pixel")
    if per_pixel or checkpoint.slide is not None or "semantic" in _name_of(checkpoint.source).lower():
        tasks: tuple[Task, ...] = ("semantic",)
    else:
        tasks = ("panoptic", "semantic") if maskformer else ("panoptic", "instance", "semantic")
    return Config(  # type: ignore[call-arg]
        name=_name_of(checkpoint.source),
        summary=f"read from {checkpoint.source}",
        task=tasks[0],
        data=DataConfig(dataset=table or "unknown", classes=table or "checkpoint"),  # type: ignore[call-arg]
        model=checkpoint.model,
        input=checkpoint.input or IMAGENET,
        test=TestConfig(  # type: ignore[call-arg]
            tasks=tasks,
            resize=checkpoint.resize or _usual_resize(checkpoint.format),
            size_divisor=32,
            pad_value=0 if checkpoint.resize is not None and checkpoint.resize.fit else None,
            slide=checkpoint.slide,
            object_threshold=0.8,
            overlap_threshold=0.8,
            top_k=100,
            only_sure_pixels=not maskformer,
            semantic_scores="logits" if per_pixel else "probabilities",
        ),
    )


def _usual_resize(file_format: str) -> ResizeConfig:
    """Return the default test size of detectron2 and MMDetection."""
    resampling: Literal["opencv", "pillow"] = "opencv" if file_format == "openmmlab" else "pillow"
    return ResizeConfig(short_edge=800, max_edge=1333, resampling=resampling)  # type: ignore[call-arg]


def _name_of(source: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(source).name).strip("-") or "model"

"""From a reference to a network that is ready to run: the place where weights, configuration and classes meet."""

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
from ..errors import WeightsError
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
    """A network in evaluation mode on the CPU, and what is known of it.

    source: where the weights came from. notes: what had to be assumed, in sentences for people.
    """

    model: MaskClassifier
    config: Config
    categories: Categories
    source: str
    notes: list[str]


def load_model(ref: str | Path, *, trust_code: bool = False, progress: Progress | None = None) -> LoadedModel:
    """Load whatever `ref` names: see `weights.load`.

    The network is made without memory of its own and takes the tensors of the file as they are: those of a
    checkpoint of ours stay mapped, so that even Swin-L is in memory once.

    Raises:
        WeightsError: nothing there, damaged, unsafe, or weights that do not fit.
        ConfigError: the checkpoint's configuration makes no sense, or names code without `trust_code`.
    """
    checkpoint = weights.load(ref, progress=progress, trust_code=trust_code)
    notes = list(checkpoint.notes)
    categories, table = categories_of(checkpoint, notes)
    config = checkpoint.config or _assumed_config(checkpoint, categories, table, notes)
    with random_state.kept():  # a fresh network draws its weights, also those that are replaced
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
    """Make a network of given weights. It takes no memory before its shapes have been found in them.

    Args:
        state_for: gives the tensors of these names and shapes, or raises.

    Raises:
        WeightsError: from `state_for`: they do not fit.
        ConfigError: the configuration makes no sense, or names code without `trust_code`.
    """
    network = networks.build_shapes(config, num_classes, trust_code=trust_code)
    expected = network.state_dict()
    state = state_for({name: tuple(tensor.shape) for name, tensor in expected.items()})
    for name, tensor in state.items():
        refuse_other_numbers(name, tensor, expected[name])
    network.load_state_dict(state, strict=True, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):
        # Constants that no file holds (some of timm's backbones have them) exist only in a network really made.
        network = networks.build(config, num_classes, trust_code=trust_code)
        network.load_state_dict(state, strict=True)
    return network


def save_huggingface(folder: str | Path, model: MaskClassifier, config: Config, categories: Categories) -> Path:
    """Write a folder that from_pretrained of transformers' Mask2Former or MaskFormer loads.

    Raises:
        ExportError: transformers has no such network, or the folder exists already.
    """
    return write_folder(folder, model.state_dict(), config, categories)


# --- classes ----------------------------------------------------------------------------------------------------------


def categories_of(checkpoint: Checkpoint, notes: list[str]) -> tuple[Categories, str]:
    """The classes of a checkpoint and the name of their table ("" for none), as many as the network has."""
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
    """Names with a number behind those that are there twice: our tables need them to differ."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


# --- configuration ----------------------------------------------------------------------------------------------------


def _assumed_config(checkpoint: Checkpoint, categories: Categories, table: str, notes: list[str]) -> Config:
    """The configuration of weights that bring none: input and test size from a processor, else the usual ones."""
    if checkpoint.input is None:
        notes.append("The file does not say how images are normalised: ImageNet's mean and deviation were assumed.")
    if checkpoint.resize is None:
        notes.append("The file does not say at what size it was tested: 800 by at most 1333 was assumed.")
    maskformer = checkpoint.model.method == "maskformer"
    per_pixel = checkpoint.model.decoder.name.startswith("per_pixel")
    if per_pixel or "semantic" in _name_of(checkpoint.source).lower():
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
            object_threshold=0.8,
            overlap_threshold=0.8,
            top_k=100,
            only_sure_pixels=not maskformer,
            semantic_scores="logits" if per_pixel else "probabilities",
        ),
    )


def _usual_resize(file_format: str) -> ResizeConfig:
    """The test size of detectron2 and MMDetection, where nothing says more."""
    resampling: Literal["opencv", "pillow"] = "opencv" if file_format == "openmmlab" else "pillow"
    return ResizeConfig(short_edge=800, max_edge=1333, resampling=resampling)  # type: ignore[call-arg]


def _name_of(source: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(source).name).strip("-") or "model"

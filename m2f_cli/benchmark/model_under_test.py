"""The model that is timed, and its inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import model as networks
from ..config import presets as configuration
from ..config.schema import Config, ResizeConfig
from ..data.synthetic.scenes import LEAST_EDGE, Scene, scene
from ..errors import ConfigError
from ..inference.base import BaseSegmenter, RawOutput, Wrapper, innermost
from ..inference.engines.base import engine_for, file_in
from ..inference.load import open_model
from ..inference.load_network import save_huggingface
from ..inference.segmenter import Segmenter
from ..inference.sliding_window import sliding
from ..runtime import random_state
from ..runtime.devices import DTYPES, choose_device, choose_precision
from ..structures.categories import load_categories
from ..weights.readers import path_of
from .case import DEFAULT_PRESET, Case

KEPT = 18  # queries that a trained COCO model finds in a usual image
_SHAPED = ("sampling_offsets", "attention_weights", "relative_position_bias_table")


def load_subject(case: Case) -> BaseSegmenter:
    """Return the segmenter of a case: the model that it names, or the network of a preset with random weights.

    Raises:
        M2FError: the model, preset, device or precision does not exist, or options exclude each other.
    """
    if case.preset and case.model:
        raise ConfigError(
            f"--preset {case.preset} and --model {case.model} exclude each other.",
            hint="A preset is timed with random weights, a model with its own.",
        )
    if case.is_random and case.engine:
        raise ConfigError(f"--engine {case.engine} runs an exported file.", hint="Give it: --model FILE (m2f export).")
    if case.is_random:
        return _random(case, configuration.load(case.preset or DEFAULT_PRESET))
    segmenter = open_model(case.model_options)
    innermost(segmenter).config = at_size(segmenter.config, case)
    return segmenter


def chosen_precision(case: Case) -> Case:
    """Return the case with a number format instead of "auto": the best of its device, or fp32 for an exported file."""
    if case.precision != "auto":
        return case
    path = None if case.model is None else path_of(case.model)
    is_file = path is not None and path.exists() and engine_for(file_in(path)) is not None
    format = "fp32" if is_file else choose_precision("auto", choose_device(case.device))
    return replace(case, precision=format)


def fixed_size(segmenter: BaseSegmenter) -> tuple[int, int] | None:
    """Return the only input size of an exported file (height, width), or None if it takes any."""
    return getattr(getattr(segmenter, "description", None), "size", None)


def _random(case: Case, config: Config) -> BaseSegmenter:
    categories = load_categories(config.data.classes)
    with random_state.kept():
        torch.manual_seed(0)
        network = networks.build(config.model, len(categories), trust_code=case.trust_code)
        shape(network)
    config = at_size(config, case)
    segmenter = Segmenter(
        network,
        config,
        categories,
        device=choose_device(case.device),
        precision=case.precision,  # type: ignore
        source=f"{config.name} with random weights",
    )
    return plausible(sliding(segmenter) if config.test.slide else segmenter)


def at_size(config: Config, case: Case) -> Config:
    """Return the configuration, without resizing if the case has a size: the network then sees the image unchanged."""
    if case.size is None:
        return config
    return config.model_copy(update={"test": config.test.model_copy(update={"resize": ResizeConfig()})})


def shape(network: nn.Module) -> None:
    """Fill parameters that start as constants with random numbers.

    Sampling offsets, for example, then read memory in the order of a trained network.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(each in name for each in _SHAPED):
                parameter.normal_(0, 0.5 if name.endswith("bias") else 0.05)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the same autocast context that `Segmenter.infer` uses."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def share(segmenter: BaseSegmenter, folder: Path) -> None:
    """Write the weights of the model, converted for transformers.

    Raises:
        ExportError: transformers has no such network.
        ConfigError: the model is an exported file.
    """
    if segmenter.model is None:
        raise ConfigError(
            f"The weights inside the exported file {segmenter.source} cannot be converted.",
            hint="Compare the model that it was made from.",
        )
    save_huggingface(folder, segmenter.model, segmenter.config, segmenter.categories)


# --- inputs -----------------------------------------------------------------------------------------------------------


class Plausible(Wrapper):
    """Segmenter that replaces the class logits of random weights by plausible ones. Masks are the network's own.

    Random weights find no objects, so post-processing would have no work. Here at most `KEPT` queries are sure of a
    class and the others of "no object", as in a trained model.
    """

    def infer(self, batch: Any) -> list[RawOutput]:
        raws = self.inner.infer(batch)
        for raw in raws:
            raw.class_logits_QK = class_logits(*raw.class_logits_QK.shape, raw.class_logits_QK.device)
        return raws


def plausible(segmenter: BaseSegmenter) -> BaseSegmenter:
    """Wrap a segmenter in `Plausible` if the amount of post-processing depends on its class logits."""
    return Plausible(segmenter) if type(segmenter) is Segmenter and segmenter.tasks != ("semantic",) else segmenter


def class_logits(queries: int, classes: int, device: torch.device | str = "cpu") -> Tensor:
    """Return class logits (queries, classes), with "no object" last. At most `KEPT` queries find a class."""
    generator = torch.Generator().manual_seed(0)
    logits_QK = torch.randn(queries, classes, generator=generator)
    order, kept = torch.randperm(queries, generator=generator), min(KEPT, max(1, queries // 5))
    labels = torch.randint(0, classes - 1, (kept,), generator=generator)
    logits_QK[order[:kept], labels] += 12
    logits_QK[order[kept:], -1] += 8
    return logits_QK.to(device)


def image(size: tuple[int, int], number: int = 0) -> Scene:
    """Generate an image of a size (height, width). Edges below `LEAST_EDGE` are raised to it."""
    return scene(number, *(max(LEAST_EDGE, edge) for edge in size))

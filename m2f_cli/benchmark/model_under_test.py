"""The model that is timed, and what it is fed."""

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
from .case import DEFAULT_PRESET, Case

KEPT = 18  # queries that a trained COCO model finds in a usual image
_SHAPED = ("sampling_offsets", "attention_weights", "relative_position_bias_table")


def load_subject(case: Case) -> BaseSegmenter:
    """The segmenter of a case: the weights that it names, or a preset's network with random ones.

    Raises:
        M2FError: of any kind: no such model, preset, device, precision.
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
    """The case, with a number format in place of "auto": what its device is good at, or what an exported file is in."""
    if case.precision != "auto":
        return case
    path = None if case.model is None else Path(case.model).expanduser()
    is_file = path is not None and path.exists() and engine_for(file_in(path)) is not None
    format = "fp32" if is_file else choose_precision("auto", choose_device(case.device))
    return replace(case, precision=format)


def fixed_size(segmenter: BaseSegmenter) -> tuple[int, int] | None:
    """(height, width) of an exported file that takes no other input."""
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
    """With a size given the network sees the image as it is."""
    if case.size is None:
        return config
    return config.model_copy(update={"test": config.test.model_copy(update={"resize": ResizeConfig()})})


def shape(network: nn.Module) -> None:
    """Random numbers for what starts as constants: with them memory is read in the order of a trained network."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(each in name for each in _SHAPED):
                parameter.normal_(0, 0.5 if name.endswith("bias") else 0.05)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """As `Segmenter.infer` has it."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def share(segmenter: BaseSegmenter, folder: Path) -> None:
    """Write the model for transformers to load: the same weights, converted.

    Raises:
        ExportError: transformers has no such network. ConfigError: it is an exported file.
    """
    if segmenter.model is None:
        raise ConfigError(
            f"The weights inside the exported file {segmenter.source} cannot be converted.",
            hint="Compare the model that it was made from.",
        )
    save_huggingface(folder, segmenter.model, segmenter.config, segmenter.categories)


# --- what it is fed ---------------------------------------------------------------------------------------------------


class Plausible(Wrapper):
    """Random weights find nothing, and post-processing of nothing is no work: class logits are those of `KEPT` queries
    that are sure and others that are not, as of a trained model. Masks are the network's own."""

    def infer(self, batch: Any) -> list[RawOutput]:
        raws = self.inner.infer(batch)
        for raw in raws:
            raw.class_logits_QK = class_logits(*raw.class_logits_QK.shape, raw.class_logits_QK.device)
        return raws


def plausible(segmenter: BaseSegmenter) -> BaseSegmenter:
    """With class logits as of a trained model where they decide how much there is to do."""
    return Plausible(segmenter) if type(segmenter) is Segmenter and segmenter.tasks != ("semantic",) else segmenter


def class_logits(queries: int, classes: int, device: torch.device | str = "cpu") -> Tensor:
    """(queries, classes), the last "no object": a fifth of the queries is sure of a class, `KEPT` at most."""
    generator = torch.Generator().manual_seed(0)
    logits_QK = torch.randn(queries, classes, generator=generator)
    order, kept = torch.randperm(queries, generator=generator), min(KEPT, max(1, queries // 5))
    labels = torch.randint(0, classes - 1, (kept,), generator=generator)
    logits_QK[order[:kept], labels] += 12
    logits_QK[order[kept:], -1] += 8
    return logits_QK.to(device)


def image(size: tuple[int, int], number: int = 0) -> Scene:
    """A generated image of (height, width); edges below the least of a scene are made up to it."""
    return scene(number, *(max(LEAST_EDGE, edge) for edge in size))

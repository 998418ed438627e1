"""Loading of a segmenter from a reference: a preset, a checkpoint, a folder or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import presets
from ..config.schema import Config
from ..errors import ConfigError
from ..runtime.devices import Precision, choose_device, choose_precision
from ..structures import Task
from ..structures.categories import load_categories
from ..weights import Progress
from ..weights.readers import path_of
from .base import BaseSegmenter, innermost
from .compile import compile_parts
from .engines import base as engines
from .load_network import load_model
from .segmenter import Segmenter
from .sliding_window import sliding
from .tiling.tiled import tiled

DEFAULT_MODELS: dict[Task, str] = {
    "panoptic": "coco-panoptic-swin-t",
    "instance": "coco-instance-swin-t",
    "semantic": "ade20k-swin-t",
}


@dataclass(frozen=True)
class ModelOptions:
    """Options of `open_model`.

    Attributes:
        ref: as in `load`. None: the weights of the preset, or the default model of the task.
        preset: preset whose configuration replaces that of the weights `ref`.
        task: task of a call that names none; by default the model's own.
        device: "auto", or any device that PyTorch knows.
        precision: a number format, or "auto".
        engine: name of the engine that runs an exported file. None: the one for this kind of file.
        trust_code: allow the model's file to name code.
        overrides: "key=value" pairs that change the configuration.
        compile: compile the parts that become faster by torch.compile.
        tta: use test-time augmentation.
        tile: height and width of tiles in pixels, as in `tiled`. None: images as a whole.
        tile_overlap: overlap of tiles, as in `tiled`.
    """

    ref: str | Path | None = None
    preset: str | None = None
    task: Task | None = None
    device: str = "auto"
    precision: str = "fp32"
    engine: str | None = None
    trust_code: bool = False
    overrides: Sequence[str] = ()
    compile: bool = False
    tta: bool = False
    tile: int | None = None
    tile_overlap: float = 0.25


def open_model(options: ModelOptions, *, progress: Progress | None = None) -> BaseSegmenter:
    """Load a model, change its settings, and wrap it as the options say.

    Args:
        options: the model and its settings.
        progress: called with records of a download.

    Raises:
        WeightsError: as in `load`.
        ConfigError: as in `load`, or a preset or settings do not fit the model.
    """
    preset = presets.load(options.preset) if options.preset else None
    if options.preset and options.ref is None and options.preset.endswith((".yaml", ".yml")):
        raise ConfigError(f"{options.preset} is a configuration without weights.", hint="Pass --model REF, too.")
    model = load(
        options.ref or options.preset or DEFAULT_MODELS[options.task or "panoptic"],
        device=options.device,
        precision=options.precision,  # type: ignore[arg-type]
        trust_code=options.trust_code,
        progress=progress,
        engine=options.engine,
    )
    if options.overrides or (preset is not None and options.ref is not None):
        model = innermost(model)  # before it is wrapped, because settings may add or remove sliding windows
        if preset is not None and options.ref is not None:
            _use_preset(model, preset)
        if options.overrides:
            model.config = presets.overridden(model.config, options.overrides)
        model = sliding(model) if model.config.test.slide is not None else model
    if options.task is not None:
        model.default_task = model.check_task(options.task)
    if options.compile:
        compile_parts(model)
    return wrapped(model, tta=options.tta, tile=options.tile, overlap=options.tile_overlap)


def _use_preset(model: Segmenter, preset: Config) -> None:
    """Give a model the configuration of a preset, without its network, and the classes of the preset."""
    categories = load_categories(preset.data.classes)
    if len(categories) != len(model.categories):
        raise ConfigError(
            f"The preset {preset.name} has {len(categories)} classes and {model.source} has {len(model.categories)}.",
            hint="Leave --preset out: the model says itself how it is tested.",
        )
    model.config = preset.model_copy(update={"model": model.config.model})
    model.categories = categories


def load(
    ref: str | Path | None = None,
    *,
    task: Task | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "fp32",
    channels_last: bool = False,
    trust_code: bool = False,
    progress: Progress | None = None,
    engine: str | None = None,
) -> BaseSegmenter:
    """Load a model.

    Args:
        ref: a preset (its released weights), a run folder, a checkpoint file, a Hugging Face folder or repository, a
            detectron2 .pkl/.pth, an OpenMMLab .pth, or a file of `m2f export`. None: the default model of `task`
            (of panoptic segmentation without a task).
        task: task of a call that names none; by default the model's own.
        device: "auto" (CUDA, then MPS, then CPU), or any device that PyTorch knows.
        precision: "fp32" as published, "bf16", "fp16", or "auto" for the fastest that the device has instructions for.
            In bf16 and fp16 are the backbone, the pixel decoder's products without those of sampling locations, and
            the decoder's keys and values. Everything else is in fp32.
        channels_last: keep the backbone's convolutions in the memory format of tensor cores, for a ResNet on CUDA,
            above all in bf16 or fp16. The numbers are the same to rounding. It is not measured on a GPU.
        trust_code: allow a checkpoint's configuration to name code, and an exported file to be a program (.pt2).
        progress: called with records of a download.
        engine: name of the engine that runs an exported file; by default the one for this kind of file.

    Raises:
        WeightsError: there is no such model, or its weights do not fit.
        ConfigError: the device or precision does not exist here.
    """
    if ref is None:
        ref = DEFAULT_MODELS[task or "panoptic"]
    path = path_of(ref)
    is_there = path.exists() and ref not in presets.preset_names()
    if is_there and path.is_dir():
        ref = path = engines.file_in(path)
    if engine is not None or (is_there and engines.engine_for(path)):
        known = "fp32" if precision == "auto" else precision  # an exported file has its own
        segmenter: Segmenter = engines.load(
            path, engine=engine, task=task, device=device, precision=known, trust_code=trust_code
        )
    else:
        chosen = choose_device(device)
        loaded = load_model(ref, trust_code=trust_code, progress=progress)
        format = choose_precision(precision, chosen)
        notes = [*loaded.notes, *([f"The network runs in {format}."] if precision == "auto" else [])]
        segmenter = Segmenter(
            loaded.model,
            loaded.config,
            loaded.categories,
            task=task,
            device=chosen,
            precision=format,
            channels_last=channels_last,
            source=loaded.source,
            notes=notes,
        )
    return segmenter if segmenter.config.test.slide is None else sliding(segmenter)


def wrapped(
    segmenter: BaseSegmenter, *, tta: bool = False, tile: int | None = None, overlap: float = 0.25
) -> BaseSegmenter:
    """Wrap a segmenter in test-time augmentation and tiles. Each tile is augmented, not the tiles of each view.

    Args:
        segmenter: the segmenter to wrap.
        tta: use test-time augmentation.
        tile: height and width of tiles in pixels, as in `tiled`. None: images as a whole.
        overlap: overlap of tiles, as in `tiled`.
    """
    if tta:
        from .tta import with_tta  # only here: it imports scipy.optimize

        segmenter = with_tta(segmenter)
    return segmenter if tile is None else tiled(segmenter, tile, overlap)

"""A segmenter from any reference: a preset, a checkpoint, a folder or an exported file."""

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
    """Which model, on what, and what stands around it.

    Attributes:
        ref: as of `load`; None: the preset's weights, else the default model of the task.
        preset: the configuration that the weights `ref` are used by, in place of their own.
        task: what the model does when a call does not say; the model's own task by default.
        precision: a number format, or "auto".
        engine: what runs an exported file; None: what its name says.
        trust_code: allow the model's file to name code.
        overrides: "key=value" pairs that change the configuration.
        compile: let torch.compile have what gains from it.
        tta: test-time augmentation.
        tile, tile_overlap: as in `tiled`; None: images as a whole.
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
    """Load a model, change its settings, and put around it what was asked for.

    Args:
        progress: called with records of a download.

    Raises:
        WeightsError: as of `load`; ConfigError: also a preset or settings that do not fit the model.
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
        model = innermost(model)  # settings come first: they may change whether windows stand around the network
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
    """Test other weights as a preset is tested."""
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
            detectron2 .pkl/.pth, an OpenMMLab .pth, or what `m2f export` wrote. None: the default model of `task`
            (panoptic without a task).
        task: what to do when a call does not say; the model's own task by default.
        device: "auto" (CUDA, then MPS, then CPU), or any device that PyTorch knows.
        precision: "fp32" as published, or "bf16" / "fp16": the backbone, the pixel decoder's products but those that
            say where to look, and the decoder's keys and values in that format, everything else in fp32. "auto": the
            fastest for which the device has instructions.
        channels_last: keep the backbone's convolutions in the memory format that tensor cores work in: for a ResNet on
            CUDA, in bf16 or fp16 above all. The numbers are the same to rounding. Not measured on a GPU.
        trust_code: allow a checkpoint's configuration to name code, and an exported file to be a program (.pt2).
        progress: called with records of a download.
        engine: what runs an exported file; by default what its name says (see `engines`).

    Raises:
        WeightsError: no such model, or its weights do not fit; ConfigError: a device or precision that is not there.
    """
    if ref is None:
        ref = DEFAULT_MODELS[task or "panoptic"]
    path = Path(ref).expanduser()
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
    """Put what `--tta` and `--tile` ask for around a segmenter: each tile is augmented, not the tiles of each view.

    Args:
        tile, overlap: as in `tiled`; None: images as a whole.
    """
    if tta:
        from .tta import with_tta  # only here: it imports scipy.optimize

        segmenter = with_tta(segmenter)
    return segmenter if tile is None else tiled(segmenter, tile, overlap)

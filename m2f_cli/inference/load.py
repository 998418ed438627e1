"""A segmenter from any reference: a preset, a checkpoint, a folder or an exported file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ..config.presets import preset_names
from ..runtime.devices import Precision, choose_device, choose_precision
from ..structures import Task
from .load_network import load_model
from .segmenter import Segmenter

DEFAULT_MODELS: dict[Task, str] = {
    "panoptic": "coco-panoptic-swin-t",
    "instance": "coco-instance-swin-t",
    "semantic": "ade20k-swin-t",
}


def load(
    ref: str | Path | None = None,
    *,
    task: Task | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "fp32",
    channels_last: bool = False,
    trust_code: bool = False,
    progress: Callable | None = None,
    engine: str | None = None,
) -> Segmenter:
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
    ref = _file_of_export(ref)
    exported = _exported(ref, engine)
    if exported is not None:
        known = "fp32" if precision == "auto" else precision  # an exported file has its own
        segmenter = exported(task=task, device=device, precision=known, trust_code=trust_code)
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
    if segmenter.config.test.slide is None:
        return segmenter
    from .sliding_window import sliding  # it stands around a Segmenter

    return sliding(segmenter)


def _file_of_export(ref: str | Path) -> str | Path:
    """The file in a folder of `m2f export`; `ref` itself where it is something else."""
    from .engines import base as engines  # they stand around a Segmenter

    path = Path(ref).expanduser()
    return engines.file_in(path) if path.is_dir() and ref not in preset_names() else ref


def _exported(ref: str | Path, engine: str | None) -> Callable[..., Segmenter] | None:
    """How to open `ref` with an engine, if it is an exported file or somebody says so."""
    from .engines import base as engines  # they stand around a Segmenter

    path = Path(ref).expanduser()
    if engine is None and not (path.exists() and ref not in preset_names() and engines.engine_for(path)):
        return None
    return functools.partial(engines.load, path, engine=engine)


def wrapped(
    segmenter: Any, *, tta: bool = False, tile: int | None = None, overlap: float = 0.25, tasks: Sequence[Task] = ()
) -> Any:
    """What `--tta` and `--tile` ask for, in the right order: each tile is augmented, not the tiles of each view.

    Args:
        tile, overlap, tasks: as in `tiling.tiled`; no tile is the picture as a whole.
    """
    if tta:
        from .tta import with_tta  # only here: it imports scipy.optimize

        segmenter = with_tta(segmenter)
    if tile is None:
        return segmenter
    from .tiling.tiled import tiled

    return tiled(segmenter, tile, overlap, tasks=tasks)

"""The page that `m2f` alone shows: this machine, what is here already, and what to type next.

It reads a few files and imports no PyTorch, so that it is there at once.
"""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import console
from ..config import shipped
from ..config.run_folder import CHECKPOINTS
from ..runtime import caches
from ..runtime.threads import usable_cores
from ..storage.sources.base import IMAGES
from ..version import __version__
from .completion import runs

GPUS, GPU_FILES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
SHOWN = 3  # names of models
MOST_LOOKED_AT = 1000  # files of a folder


def show() -> None:
    """Print the start page."""
    models, run = cached_models(), next(iter(runs()), None)
    console.out(f"m2f {__version__}: image segmentation with Mask2Former, MaskFormer and MP-Former")
    console.out("")
    console.out(f"Device:    {device()}")
    more = f" and {len(models) - SHOWN} more" if len(models) > SHOWN else ""
    console.out(f"Models:    {', '.join(models[:SHOWN]) or 'none is here yet; the first use downloads one'}{more}")
    console.out(f"Last run:  {run or 'none below this folder'}")
    console.out("")
    console.out("Next:")
    for line in next_lines(models, run, first_image(Path())):
        console.out(f"  {line}")
    console.out("")
    console.out("m2f --help lists all commands; m2f COMMAND --help has examples.")


def device() -> str:
    """Return the name of what m2f would compute on, as the files of this machine say."""
    names = [_model(file) for file in sorted(GPUS.glob("*/information"))]
    names = names or ["NVIDIA GPU" for _ in GPU_FILES.glob("nvidia[0-9]*")]
    if names:
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Apple GPU (mps)"
    cores = usable_cores()
    return f"CPU, {cores} {'core' if cores == 1 else 'cores'}"


def _model(file: Path) -> str:
    found = re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1].strip() if found else "NVIDIA GPU"


def cached_models() -> list[str]:
    """Return the presets whose released weights are on this machine, sorted."""
    folder, hub = caches.weights_dir(), caches.hub_dir()
    here = {path.name for path in folder.glob("*") if path.is_file()}
    here |= {path.name.removeprefix("models--").replace("--", "/") for path in hub.glob("models--*")}
    here |= {path.name.replace("--", "/") for path in (folder / "hub").glob("*")}
    return [name for name in shipped.preset_names() if here and not here.isdisjoint(_weights_of(name))]


def _weights_of(preset: str) -> Iterator[str]:
    """Yield the files and repositories of released weights that the text of a preset names."""
    text = (shipped.presets_dir() / f"{preset}.yaml").read_text(encoding="utf-8")
    for kind, place in re.findall(r"^\s*(?:- )?(url|hub): (\S+)$", text, re.MULTILINE):
        yield place.rpartition("/")[2] if kind == "url" else place


def first_image(folder: Path) -> str | None:
    """Return an image in a folder, if one of its first files is one."""
    files = [path for path, _ in zip(folder.iterdir(), range(MOST_LOOKED_AT), strict=False)]
    images = sorted(
        path.name for path in files if path.suffix.lower() in IMAGES and not path.name.startswith((".", "-"))
    )
    return images[0] if images else None


def next_lines(models: list[str], run: Path | None, image: str | None) -> Iterator[str]:
    """Yield commands that make sense now."""
    is_trained = run is not None and any((run / CHECKPOINTS).glob("*.safetensors"))
    model = run if is_trained else models[0] if models else None
    yield f"m2f predict {shlex.quote(image or 'YOUR_IMAGES')}{f' --model {shlex.quote(str(model))}' if model else ''}"
    if is_trained:
        yield f"m2f eval --model {shlex.quote(str(run))}"
        yield f"m2f export --model {shlex.quote(str(run))}"
        return
    if run is not None:
        yield f"m2f train --out {shlex.quote(str(run))} --resume"
    yield "m2f data check YOUR_DATA"
    yield "m2f train --preset small-panoptic --data YOUR_DATA"
    yield "m2f demo"

"""A walk through the whole of prediction, offline, on generated pictures: what `m2f demo` does.

    OUT/pictures/NAME.png                          generated scenes
    OUT/truth/NAME.jpg                             what a perfect result looks like
    OUT/checkpoints/last.safetensors               a small network, as m2f saves it: OUT is a REF
    OUT/predict/panoptic, semantic, instance/      what `m2f predict` writes, with that network

Training is not part of it yet: the network's weights are random.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .. import config, weights
from .. import model as networks
from ..config import Config
from ..data.synthetic import CATEGORIES, Scene, scene
from ..errors import ConfigError, M2FError
from ..types import Task
from . import pipeline, segmenter
from .journal import check_folder
from .output import atomic, write_overlay
from .segmenter import Segmenter
from .sources import expand

MARK = ".demo.jsonl"  # the files that the demo wrote, one a line; in a folder with one it may write again
HEIGHT, WIDTH = 320, 480
SEED = 4  # of the network: with these random weights something of each kind is found
BASE = "coco-panoptic-swin-t"
SMALL = (  # a Mask2Former of 3 million parameters instead of 47
    "name=demo", "summary=a small Mask2Former for generated scenes", "weights=[]", "published=[]",
    "data={dataset: synthetic, classes: synthetic}",
    "model.backbone.embed_dim=32", "model.backbone.num_heads=[1, 2, 4, 8]", "model.backbone.depths=[2, 2, 2, 2]",
    "model.backbone.pretrained=null",
    "model.pixel_decoder.dim=64", "model.pixel_decoder.mask_dim=64", "model.pixel_decoder.num_layers=3",
    "model.pixel_decoder.ffn_dim=128",
    "model.decoder.dim=64", "model.decoder.num_queries=20", "model.decoder.num_layers=3", "model.decoder.ffn_dim=128",
    f"test.resize.short_edge={HEIGHT}", f"test.resize.max_edge={WIDTH}",
)  # fmt: skip
# Random weights are sure of nothing: without thresholds of zero there would be nothing to see.
THRESHOLDS = {"object_threshold": 0.0, "overlap_threshold": 0.0, "score_threshold": 0.0, "top_k": 12}
FORMATS: dict[Task, list[str]] = {
    "panoptic": ["overlay", "coco-panoptic"],
    "semantic": ["overlay", "label-png"],
    "instance": ["overlay", "coco-instance"],
}
STEPS = 4 + len(FORMATS)


@dataclass(frozen=True)
class Step:
    """One step of the demo, when it is done: its name, what came of it, the seconds it took, and where that is."""

    name: str
    what: str
    seconds: float
    where: Path


def run(out: Path, pictures: int = 4, *, on_step: Callable[[Step], None] | None = None) -> list[Step]:
    """Run the demo. What an earlier one wrote to `out` is replaced; files of others are never touched.

    Args:
        pictures: how many scenes.
        on_step: is told of each of the STEPS steps when it is done.

    Raises:
        ConfigError: `out` is a file, or holds files and no demo; or no pictures.
        M2FError: a file cannot be written.
    """
    if pictures < 1:
        raise ConfigError(f"The demo needs at least one picture, not {pictures}.")
    claim(out)
    done: list[Step] = []
    started = time.perf_counter()
    for name, what, where in _steps(out, pictures):
        now = time.perf_counter()
        done.append(Step(name, what, now - started, where))
        started = now
        if on_step:
            on_step(done[-1])
    return done


def small_config() -> Config:
    """The configuration of the demo's network."""
    return config.load(BASE, SMALL)


def _steps(out: Path, pictures: int) -> Iterator[tuple[str, str, Path]]:
    """The steps, each done when it is yielded: name, what came of it, where."""
    scenes = {f"scene-{seed:02d}": scene(seed, HEIGHT, WIDTH) for seed in range(pictures)}
    files = [_write_picture(out, name, made) for name, made in scenes.items()]
    yield "pictures", f"{pictures} generated, {WIDTH} x {HEIGHT}", out / "pictures"
    for name, made in scenes.items():
        _record(out, f"truth/{name}.jpg")
        write_overlay(made.panoptic(), out / "truth" / name)
    yield "truth", f"{sum(len(made.segments) for made in scenes.values())} segments drawn", out / "truth"
    file = _write_network(out)
    yield "network", f"made and saved, {file.stat().st_size / 1e6:.0f} MB", file
    loaded = segmenter.load(file)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    yield "load", f"{parameters / 1e6:.1f} million parameters, on {loaded.device}", file
    for task in FORMATS:
        yield task, _predict(loaded, files, task, out / "predict" / task), out / "predict" / task


def _write_picture(out: Path, name: str, made: Scene) -> Path:
    _record(out, f"pictures/{name}.png")
    path = out / "pictures" / f"{name}.png"
    with atomic(path) as part:
        Image.fromarray(made.image_HW3).save(part, format="PNG")
    return path


def _write_network(out: Path) -> Path:
    """The small network, always with the same random weights."""
    chosen = small_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = networks.build(chosen.model, len(CATEGORIES))
    _record(out, "checkpoints/last.safetensors")
    return weights.save(out / "checkpoints" / "last.safetensors", network.state_dict(), chosen, CATEGORIES)


def _predict(loaded: Segmenter, files: list[Path], task: Task, folder: Path) -> str:
    """What `m2f predict` does, and what it found."""
    kept = {"panoptic": ("object_threshold", "overlap_threshold"), "instance": ("score_threshold", "top_k")}
    thresholds = {key: THRESHOLDS[key] for key in kept.get(task, ())}
    summary = pipeline.predict(
        loaded, expand(files), task, folder, FORMATS[task], overwrite=True, thresholds=thresholds
    )
    if summary.failed:
        raise M2FError(f"The demo could not segment its own picture: {summary.failed[0].message}")
    return f"{summary.done / summary.seconds:.1f} pictures/s, saved as {', '.join(FORMATS[task])}"


# --- the folder -------------------------------------------------------------------------------------------------------


def claim(out: Path) -> None:
    """Make a folder the demo's own, without what an earlier demo wrote. Predictions keep a journal of their own.

    Raises:
        ConfigError: it is a file, or holds files of others.
        M2FError: it cannot be written.
    """
    check_folder(out, skip_existing=True, overwrite=False)
    mark = out / MARK
    if out.is_dir() and any(out.iterdir()) and not mark.is_file():
        raise ConfigError(f"{out} holds files, and not those of a demo.", hint="Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in _recorded(mark) if mark.is_file() else ():
            if not Path(name).is_absolute() and ".." not in Path(name).parts:
                (out / name).unlink(missing_ok=True)
        mark.write_text("", encoding="utf-8")
    except OSError as error:
        raise M2FError(f"Cannot write to {out}: {error.strerror}.") from error


def _recorded(mark: Path) -> list[str]:
    """The names in a mark. Half a line at the end is of a demo that was killed before it wrote that file."""
    lines = mark.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [str(json.loads(line)) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ConfigError(f"{mark} is damaged.", hint="Choose another --out.") from error


def _record(out: Path, name: str) -> None:
    """Note a file that is about to be written: also one of a demo that is interrupted then is the demo's own."""
    try:
        with (out / MARK).open("a", encoding="utf-8") as file:
            file.write(json.dumps(name) + "\n")
    except OSError as error:
        raise M2FError(f"Cannot write {out / MARK}: {error.strerror}.") from error

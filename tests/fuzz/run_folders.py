"""Mutants of the files of a run: its configuration, its options, its state and its weights."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz.checkpoints import saved, saved_or, spoil_state, with_other_header
from fuzz.harness import Target
from fuzz.spoil import odd_value, spoil_bytes, spoil_json, spoil_tree
from weights.models import CATEGORIES, config_of, network_of

from m2f_cli.config import presets
from m2f_cli.config.schema import Config
from m2f_cli.errors import about
from m2f_cli.inference.load_network import load_model
from m2f_cli.model import build
from m2f_cli.training import folder as run_folder
from m2f_cli.training import options as run_options
from m2f_cli.training import parts, resume

Mutants = Iterator[tuple[str, Path]]
ITERATIONS = 100


@functools.cache
def run_config() -> Config:
    return config_of().model_copy(update={"train": presets.load("small-panoptic").train})


@functools.cache
def run_parts() -> parts.Parts:
    options = run_options.TrainOptions()
    return parts.make_parts(network_of(run_config()), run_config(), options, torch.device("cpu"))


@functools.cache
def run_state() -> dict[str, Any]:
    state = {"iteration": 5, "skipped": 0, "in_a_row": 0, "evaluated": 0, "best": {}, "identity": None}
    return {"schema_version": 1, **state, **resume.snapshot(run_parts())}


def run(rng: random.Random, folder: Path) -> Mutants:
    place = folder / "run"
    while True:
        shutil.rmtree(place, ignore_errors=True)
        (place / "checkpoints").mkdir(parents=True)
        name = rng.choice(("config.yaml", "env.json", "resume.pt", "best.safetensors"))
        config = run_config().model_dump(mode="json", exclude_none=True)
        path = place / name
        if name == "config.yaml":
            done, config = spoil_tree(rng, config)
            try:
                text = yaml.safe_dump(config)
            except (RecursionError, yaml.YAMLError):  # what cannot be written is no file
                done, text = "empty", ""
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        elif name == "env.json":
            tree = {"m2f": "1", "options": {"data": "/x", "batch_size": 2, "workers": 1, "freeze": ["backbone"]}}
            done, content = spoil_json(rng, {**tree, "data": {"train": 3}, "notes": []})
            path.write_bytes(content)
        else:
            path = place / "checkpoints" / name
            is_resume = name == "resume.pt"
            done, content = _resume_file(rng) if is_resume else with_other_header(rng, "m2f")
            path.write_bytes(content)
        yield f"{name}: {done}", place if name == "best.safetensors" else path


def _resume_file(rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.3:
        return spoil_bytes(rng, saved(run_state(), zipped=rng.random() < 0.9))
    done, state = "good", {**run_state()}
    part = rng.choice(("top", "model", "optimizer", "scaler", "random"))
    if part == "top":
        parts_ = {key: value for key, value in state.items() if isinstance(value, dict)}
        done, plain = spoil_tree(rng, {key: value for key, value in state.items() if key not in parts_})
        state = {**parts_, **plain} if isinstance(plain, dict) else plain
    elif part == "model":
        done, state["model"] = spoil_state(rng, state["model"])
    else:
        done, state[part] = spoil_tree(rng, state[part], odd=_odd_tensor)
    return saved_or(functools.partial(saved, zipped=True), f"{part}: {done}", state, run_state())


def _odd_tensor(rng: random.Random, before: Any = None) -> Any:
    return torch.zeros(rng.choice(((), (0,), (3,), (16, 16)))) if rng.random() < 0.4 else odd_value(rng, before)


def read_run(path: Path) -> object:
    """Read a file of a run, as `--resume` and `--model RUN` do."""
    if path.name == "config.yaml":
        return build(run_folder.read_settings(path.parent).model, len(CATEGORIES))
    if path.name == "env.json":
        return run_options.stored_options(path)
    if path.name == "resume.pt":
        tree = resume.read_run(path, ITERATIONS)
        with about(path):
            resume.restore(run_parts(), tree)
            return resume.set_random_state(tree["random"], torch.device("cpu"))
    return load_model(path)


TARGETS = (Target("run", run, read_run, items="The configuration of|There is no ", share=0.06),)

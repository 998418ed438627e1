"""Every number of a network's description, replaced by one that is far too large: refused before it takes memory."""

from __future__ import annotations

import copy
import functools
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.checkpoints import huggingface_files, joined, load, ours, parted
from fuzz.harness import Target, run, table
from fuzz.over_a_base import sample
from fuzz.spoil import json_bytes, places
from helpers.vits import eomt_config, pmt_config
from weights.models import CATEGORIES, config_of

from m2f_cli import weights
from m2f_cli.model import build

MOST_MEMORY = 256 << 20  # bytes; the networks themselves have two million numbers
HUGE = 1_000_000_000


def at(tree: Any, path: tuple) -> Any:
    return functools.reduce(lambda part, key: part[key], path, tree)


def numbers(tree: Any) -> list[tuple]:
    """The places of whole numbers, lists of them once."""
    found = [path for path in places(tree) if type(at(tree, path)) is int and path[-1] not in (1, 2, 3)]
    assert len(found) > 10
    return found


def changed(tree: Any, path: tuple) -> Any:
    tree = copy.deepcopy(tree)
    at(tree, path[:-1])[path[-1]] = HUGE
    return tree


def folders(name: str, _: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    files = huggingface_files(name)
    (folder / "repo").mkdir(parents=True)
    for file, content in files.items():
        (folder / "repo" / file).write_bytes(content)
    for file in ("config.json", "preprocessor_config.json"):
        tree = json.loads(files[file])
        for path in numbers(tree) if file == "config.json" else ():
            (folder / "repo" / file).write_bytes(json_bytes(changed(tree, path)))
            yield f"{file} {path}", folder / "repo"
        (folder / "repo" / file).write_bytes(files[file])


@functools.cache
def of_plain_vit(method: str) -> bytes:
    """A checkpoint of EoMT or of PMT."""
    network = {"eomt": eomt_config, "pmt": pmt_config}[method]()
    config = config_of().model_copy(update={"model": network})
    with tempfile.TemporaryDirectory() as folder:
        state = build(network, len(CATEGORIES)).state_dict()
        return weights.save(Path(folder, "a.safetensors"), state, config, CATEGORIES).read_bytes()


def headers(content: Callable[[], bytes], rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.safetensors").write_bytes(sample()[1])
    header, data = parted(content())
    tree = json.loads(header["__metadata__"]["m2f"])
    for path in numbers(tree["config"]):
        other = {**tree, "config": changed(tree["config"], path)}
        content = {**header, "__metadata__": {"m2f": json.dumps(other)}}
        (folder / "a.safetensors").write_bytes(joined(rng, json_bytes(content), data))
        yield f"{path}", folder / "a.safetensors"


CONTENTS = {
    "m2f": ours,
    "over a base": lambda: sample()[0],
    **{method: functools.partial(of_plain_vit, method) for method in ("eomt", "pmt")},
}
TARGETS = {name: functools.partial(headers, content) for name, content in CONTENTS.items()}
TARGETS |= {name: functools.partial(folders, name) for name in ("swin", "resnet", "maskformer")}


def count_of(mutants: Any, folder: Path) -> int:
    return sum(1 for _ in mutants(random.Random(0), folder))


@pytest.mark.parametrize("name", TARGETS)
def test_a_huge_number_takes_no_memory(name, tmp_path):
    count = count_of(TARGETS[name], tmp_path / "count")
    report = run(Target(name, TARGETS[name], load), count, 0, memory=MOST_MEMORY)
    assert report.tried == count > 10 and not report.faults, table([report])
    assert report.peak < MOST_MEMORY
    assert report.counts["refused"] > count // 3

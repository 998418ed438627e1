"""Every example runs, offline, with tiny models and generated data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.small_segmenter import NAMES, write_model
from PIL import Image

import m2f_cli as m2f
from m2f_cli.structures.categories import from_names

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TINY = [
    "train.iterations=1",
    "train.batch=2",
    "train.loss.num_points=64",
    "data.scenes.train=2",
    "data.scenes.val=1",
    "data.scenes.size=[64, 96]",
    "test.resize.short_edge=64",
    "test.resize.max_edge=96",
    "model.backbone.depth=18",
    "model.backbone.width=8",
    "model.pixel_decoder.num_layers=1",
]


def run(*command: object, folder: Path, **settings: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "M2F_OFFLINE": "1", **settings}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model and an image."""
    folder = tmp_path_factory.mktemp("examples")
    config = m2f.load_config("tiny", [*TINY, "test.object_threshold=0.0"])
    write_model(folder / "model.safetensors", config, from_names(NAMES, things=NAMES[:3]))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_predict_in_python(home):
    said = run(
        EXAMPLES / "predict_in_python.py", "photo.png", "--model", "model.safetensors", "--out", "out", folder=home
    )
    assert said.startswith("photo.png: 100 x 70 pixels, panoptic\n")
    assert (home / "out/overlay/photo.jpg").is_file() and (home / "out/polygons/photo.json").is_file()


@pytest.mark.slow
def test_finetune_on_a_folder(home, nuclei_dir):
    settings = [f"--set={pair}" for pair in TINY if "scenes" not in pair and "iterations" not in pair]
    arguments = ["--preset", "tiny", "--init", "random", "--iterations", "1", "--out", "tuned", *settings]
    said = run(EXAMPLES / "finetune_on_a_folder.py", nuclei_dir, *arguments, folder=home)
    assert said.startswith("trained 1 iterations") and re.search(r"^ap \d", said, re.MULTILINE)
    assert (home / "tuned" / "checkpoints" / "best.safetensors").is_file()


@pytest.mark.slow
def test_plugin_backbone_is_found_by_its_entry_point(home, tmp_path):
    """What installing the package would put on the path: its module, and metadata with the entry points."""
    project = EXAMPLES / "plugin_backbone"
    shutil.copytree(project / "m2f_pyramid", tmp_path / "m2f_pyramid")
    groups = re.findall(
        r'^\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = .*\n)+)', (project / "pyproject.toml").read_text(), re.M
    )
    info = tmp_path / "m2f_pyramid-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: m2f-pyramid\nVersion: 0.1.0\n")
    entries = "".join(f"[{group}]\n{lines}".replace('"', "") for group, lines in groups)
    (info / "entry_points.txt").write_text(entries)
    command = re.search(r"^m2f (train .*)$", (project / "README.md").read_text(), re.M)[1].split()
    own = [pair for pair in TINY if "backbone" not in pair]
    overrides = [each for pair in own for each in ("--set", pair)]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    run("-m", "m2f_cli", *command, *overrides, "--workers", "0", folder=home, PYTHONPATH=path)
    assert "name: pyramid" in (home / "runs/pyramid/config.yaml").read_text()
    assert (home / "runs/pyramid/checkpoints/last.safetensors").is_file()


@pytest.mark.slow
def test_onnx_without_pytorch(home):
    pytest.importorskip("onnxruntime")
    model = m2f.load(home / "model.safetensors", device="cpu")
    m2f.export(model, home / "model.onnx", format="onnx", size=(64, 96), postprocess="panoptic")
    arguments = ["model.onnx", "photo.png", "--out", "panoptic.png"]
    program = (
        f"import runpy, sys; sys.argv = ['it', *{arguments!r}]; "
        f"runpy.run_path({str(EXAMPLES / 'onnx_without_pytorch.py')!r}, run_name='__main__'); "
        "assert not {'torch', 'm2f_cli'} & set(sys.modules)"
    )
    said = run("-c", program, folder=home)
    assert " pixels, score " in said and said.endswith("wrote panoptic.png\n")
    assert Image.open(home / "panoptic.png").size == (100, 70)


def test_the_page_lists_every_example():
    page = (EXAMPLES / "README.md").read_text()
    listed = set(re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", page, re.M))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")}

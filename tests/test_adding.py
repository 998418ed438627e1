"""Each example of docs/development/adding.md is a file and a line, applies to this tree, and does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import write_mask, write_random_image, write_text

from m2f_cli import plugins

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "development" / "adding.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## ([^\n]+)\n.*?^```diff\n(.*?)^```\n\n```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TITLES = [title for title, _, _ in SECTIONS]
FAST = ["--set", "train.iterations=1", "--set", "train.batch=2", "--set", "data.scenes.val=2", "--workers", "0"]
GROUPS = {
    *("backbones", "pixel_decoders", "decoders", "transforms", "metrics"),
    *("formats", "writers", "exporters", "engines", "commands"),
}
# The commands run in one process, with the copy of the package.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from m2f_cli import cli
assert cli.__file__.startswith(sys.argv[1])
for arguments in json.loads(sys.argv[2]):
    print("$", *arguments, flush=True)
    code = cli.run(arguments)
    print("exit code", code, flush=True)
    if code:
        sys.exit(code)
"""


def added(diff: str) -> dict[str, list[str]]:
    """The lines that a diff adds, by file; it takes none away."""
    files: dict[str, list[str]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            files[line.removeprefix("+++ b/")] = lines = []
        elif line.startswith("+"):
            lines.append(line[1:])
        assert not line.startswith("-") or line.startswith("--- ")
    return files


def test_there_is_an_example_of_each_kind():
    groups = set()
    for _, diff, _ in SECTIONS:
        groups |= set(re.findall(r'^     "(\w+)": \{$', diff, re.MULTILINE))
    assert groups == GROUPS <= set(plugins.BUILT_IN)


@pytest.mark.parametrize(("title", "diff", "command"), SECTIONS, ids=TITLES)
def test_an_example_is_a_file_and_a_line_and_applies(title, diff, command):
    files = added(diff)
    [own] = [path for path in files if path != "m2f_cli/plugins.py"]
    [line] = files["m2f_cli/plugins.py"]
    module = own.removesuffix(".py").replace("/", ".")
    assert re.fullmatch(rf'        "[\w-]+": "{module}:\w+",', line) and not (ROOT / own).exists()
    subprocess.run(["git", "apply", "--check", "-"], input=diff, text=True, cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of the package with every example applied, and what the commands of the page need."""
    folder = tmp_path_factory.mktemp("adding")
    for name in ("m2f_cli", "presets"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for _, diff, _ in SECTIONS:
        # The paths of the diff are those below this folder; git must not look for a repository above it.
        settings = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)}
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder / "tree", env=settings, check=True)
    for i in range(2):
        write_random_image(folder / "images" / f"{i}.jpg", (64, 96), seed=i)
    for split in ("train", "val"):
        for i in range(2):
            labels_HW = np.random.default_rng([i, len(split)]).integers(0, 2, (64, 96))
            write_random_image(folder / "pairs" / split / f"{i}.jpg", (64, 96), seed=i + 10 * len(split))
            write_mask(folder / "pairs" / split / f"{i}.mask.png", labels_HW)
    write_text(folder / "pairs" / "classes.txt", "field\nforest\n")
    return folder


def test_every_example_runs(home, fresh):
    first = "m2f train --preset tiny --init random --set model.backbone.depth=18 --out runs/first"
    commands = [shlex.split(line) for line in [first, *(command.strip() for _, _, command in SECTIONS)]]
    assert all(command[0] == "m2f" for command in commands)
    commands = [[*command[1:], *(FAST if command[1] == "train" else ())] for command in commands]
    environment = {**os.environ, "PYTHONPATH": str(home / "tree"), "M2F_OFFLINE": "1", "NO_COLOR": "1"}
    done = fresh(DRIVER, home / "tree", json.dumps(commands), folder=home, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for run in ("pyramid", "sum", "pooled", "grey"):
        assert (home / "runs" / run / "checkpoints" / "last.safetensors").is_file()
        settings = (home / "runs" / run / "config.yaml").read_text()
        assert f"name: {'greyscale' if run == 'grey' else run}" in settings
    figures = json.loads((home / "runs" / "eval" / "accuracy" / "results.json").read_text())
    assert 0 <= figures["figures"]["pixel_accuracy"] <= 100
    assert "pairs" in done.stdout and "forest" in done.stdout  # m2f data check
    assert (home / "out" / "csv" / "csv" / "0.csv").read_text().startswith("class,score,pixels\n")
    assert json.loads((home / "out" / "npz" / "export.json").read_text())["format"] == "npz"
    assert (home / "out" / "from-npz" / "predictions.json").is_file()
    assert "$ classes cityscapes\nroad\n" in done.stdout

"""Every `bash` and `python` block of the README and of docs/ is run, in a folder with images of its own.

The default suite runs those of `FIRST_PAGES` and parses the commands of all pages; `pytest -m slow` runs all of them.

Weights that would be downloaded are random ones of the released shape, put where downloads are kept: the network is
switched off, their hashes are not compared, everything else is what a user gets. Trainings take two steps.
What cannot be run here (downloads, GPUs, hours) stands in `text` blocks; those commands are parsed.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from helpers.folders import image_entry, write_ids, write_json

from m2f_cli import cli, plugins
from m2f_cli.config import presets as config
from m2f_cli.model import build
from m2f_cli.structures.categories import load_categories
from m2f_cli.weights import download
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {  # pages whose blocks another test runs
    "docs/development/adding.md",  # tests/test_adding.py
    "docs/guides/at-scale.md",  # tests/cluster/test_guide.py
    "docs/reference/api.md",  # tests/test_public_api.py
}
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
RUN = {name: page for name, page in PAGES.items() if name not in ELSEWHERE}
TEST_COMMAND = 'pip install -e ".[test]" && pytest'


def fenced(page: str) -> list[tuple[str, str]]:
    """Return language and text of each block, in order; those inside of tabs are indented."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page, re.MULTILINE | re.DOTALL)
    return [(kind, textwrap.dedent(text)) for _, kind, text in found]


def blocks(language: str, page: str = README) -> list[str]:
    return [text for kind, text in fenced(page) if kind == language]


def commands(block: str) -> list[str]:
    return [line for line in block.splitlines() if line and not line.startswith("#")]


BLOCKS = list(dict.fromkeys(block for page in RUN.values() for block in blocks("bash", page)))
COMMANDS = list(dict.fromkeys(command for block in BLOCKS for command in commands(block)))
TRAINING = next(block for block in BLOCKS if "m2f train" in block)
SAMPLING = next(block for block in BLOCKS if block.startswith("m2f data sample"))
SHORTER = {  # command → what a test adds to it
    "m2f demo": " --iterations 10",  # tests/workflows/test_demo.py, marked slow, has all of them
    "m2f train": " --set train.iterations=2 --batch 2 --val-images 2",
    "m2f eval --model runs/first": " --limit 4",
    "m2f eval --model runs/nuclei": " --limit 2",
}
WITHOUT_HASHES = """from m2f_cli import cli
from m2f_cli.weights import download
download.refuse_other_content = lambda path, published: None
cli.main()
"""
SIZE = (240, 24)  # width and height of images
INSTALLING = "pip install -e . && "  # a test does not install; the suite runs where that has been done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder: images, annotations, and the weights of presets where downloads are kept.

    The commands of the README that train have been run: others evaluate and export what they leave. Images are long and
    low, which keeps them small where the short edge would become 800 pixels.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "images").mkdir()
    (folder / "m2f" / "weights").mkdir(parents=True)
    for path in ("photo.jpg", "images/a.jpg", "images/b.jpg"):
        pixels = np.random.default_rng(len(path)).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / path), cv2.resize(pixels, SIZE, interpolation=cv2.INTER_CUBIC))
    write_coco(folder / "coco")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "m2f" / "weights" / "resnet18-f37072fd.pth")
    for name in ("coco-panoptic-swin-t", "coco-instance-swin-t", "ade20k-swin-t-paper"):
        preset = config.load(name)
        torch.manual_seed(0)
        model = build(preset.model, len(load_categories(preset.data.classes)))
        weights = from_m2f(TABLES["detectron2"], model.state_dict())
        file = folder / "m2f" / "weights" / preset.weights[0].url.rpartition("/")[2]
        with file.open("wb") as stream:
            pickle.dump({"model": {k: v.numpy() for k, v in weights.items()}, "__author__": "test"}, stream)
    (folder / "bin").mkdir()
    (folder / "bin" / "m2f").write_text(f"#!{sys.executable}\n{WITHOUT_HASHES}")
    (folder / "bin" / "m2f").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "refuse_other_content", lambda path, published: None)
        for command in (*commands(TRAINING), *commands(SAMPLING)):
            run_here(command, folder)
        yield folder
    for file in (folder / "m2f" / "weights").iterdir():
        file.unlink()  # 600 MB


def write_coco(folder: Path) -> None:
    """Two images in each split, a person on grass, and predictions of the held-back ones."""
    classes = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in load_categories("coco-panoptic")]
    person, grass = (next(c["id"] for c in classes if name in c["name"]) for name in ("person", "grass"))
    width, height = SIZE
    ids_HW = np.full((height, width), 2, np.int32)
    ids_HW[4:20, 20:60] = 1
    segments = [
        {
            "id": i,
            "category_id": category,
            "iscrowd": 0,
            "area": int((ids_HW == i).sum()),
            "bbox": [0, 0, width, height],
        }
        for i, category in ((1, person), (2, grass))
    ]
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
        for i in (1, 2):
            pixels = np.random.default_rng([i, len(split)]).integers(0, 256, (8, 12, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / split / f"{i}.jpg"), cv2.resize(pixels, SIZE))
            write_ids(folder / f"panoptic_{split}" / f"{i}.png", ids_HW)
        tree = {
            "images": [image_entry(i, f"{i}.jpg", (height, width)) for i in (1, 2)],
            "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (1, 2)],
            "categories": classes,
        }
        write_json(folder / "annotations" / f"panoptic_{split}.json", tree)
    write_json(folder / "panoptic_results.json", {"annotations": tree["annotations"]})
    for i in (1, 2):
        write_ids(folder / "panoptic_results" / f"{i}.png", ids_HW)


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "M2F_HOME": str(folder / "m2f"), "M2F_OFFLINE": "1", "NO_COLOR": "1"}


def run(command: str, folder: Path) -> None:
    """Run a command as a user does: by the shell, in a process of its own."""
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def run_here(command: str, folder: Path) -> None:
    """Run a command in this process, which has imported PyTorch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        assert cli.run(shlex.split(shortened(command))[1:]) == 0, command


def shortened(command: str) -> str:
    return command + "".join(more for start, more in SHORTER.items() if command.startswith(start))


def is_plain(command: str) -> bool:
    """Whether the shell has nothing to do but to split words."""
    return command.startswith("m2f ") and not re.search(r"[|<>&;$*?]", re.sub(r"'[^']*'", "", command))


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 10 and TEST_COMMAND in COMMANDS and len(blocks("python")) >= 1


def is_part_of_another(block: str) -> bool:
    return any(set(commands(block)) < set(commands(other)) for other in BLOCKS)


def steps() -> dict[str, list[tuple[str, str]]]:
    """Return the blocks that are run, by page and in their order; each once, where it stands first."""
    seen = {TRAINING, SAMPLING}  # the fixture has run them
    found: dict[str, list[tuple[str, str]]] = {}
    for name, page in RUN.items():
        for kind, block in fenced(page):
            is_shell = kind == "bash" and TEST_COMMAND not in block and not is_part_of_another(block)
            if (is_shell or kind == "python") and block not in seen:
                seen.add(block)
                found.setdefault(name, []).append((kind, block))
    return found


STEPS = steps()
FIRST_PAGES = ("README.md",)


def is_guide(page: str) -> bool:
    return page.startswith("docs/guides/")  # tests/test_guides.py


def page_of(name: str):
    return name if name in FIRST_PAGES else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("page", [page_of(name) for name in STEPS if not is_guide(name)])
def test_the_blocks_of_a_page_run_in_their_order(home, page, monkeypatch):
    run_blocks(home, page, monkeypatch)


def run_blocks(home: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, block in STEPS[page]:
        if kind == "python":
            run_python(block, home, monkeypatch)
            continue
        for command in commands(block):
            command = command.removeprefix(INSTALLING)
            (run_here if is_plain(command) else run)(command, home)
            check_output(command, home)


def run_python(code: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    names: dict = {"__name__": "__main__"}
    exec(compile(code, "block.py", "exec"), names)
    if code in blocks("python"):
        records, result = names["records"], names["result"]
        assert len(records) == len(result.segments) and names["image"].size == result.size[::-1]


def test_training_as_shown_leaves_results(home):
    for command in commands(TRAINING):
        check_output(command, home)


def check_output(command: str, home: Path) -> None:
    words = shlex.split(command)
    if "--out" in words:
        out = home / words[words.index("--out") + 1]
        kept = {"predict": "predictions.json", "train": "results.json", "eval": "results.json"}
        name = words[words.index("m2f") + 1]
        assert (out / kept[name]).is_file() if name in kept else out.exists()


def test_the_test_command_is_what_ci_runs():
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text()
    for extra in {"test", *re.findall(r"m2f-cli\[(\w+)\]", "".join(PAGES.values()))}:
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


LINES = sorted(
    {
        line
        for name, page in PAGES.items()
        if name in RUN or "/guides/" in name
        for kind in ("bash", "text", "")
        for block in blocks(kind, page)
        for line in re.findall(r"\bm2f(?: |$).*", re.sub(r"\\\n\s*", " ", block).replace("python -m m2f_cli", "m2f"))
    }
)


def test_every_line_of_any_block_is_understood(only_parsed, capsys):
    """Also those that are not run: options and arguments exist, and values are of their kind.

    Completion is not installed here: that writes into the home folder, and depends on the shell around the tests.
    """
    wrong = []
    typed = [line for line in LINES if re.match(r"m2f (?:--?\w|[a-z]+)", line) and "…" not in line]
    typed.remove("m2f --install-completion")
    assert len(typed) > 60
    for line in typed:
        for command in re.split(r"&&|\||2>|>| # ", line):
            words = shlex.split(command)
            if words[:1] == ["m2f"] and cli.run(words[1:]) != 0:
                wrong.append(f"{command}: {capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)
    assert len(only_parsed) > 60


def test_the_tree_is_the_tree():
    """Each name in the architecture's tree exists, and each part of the package is in it."""
    page = (ROOT / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    tree = next(block for block in blocks("text", page) if "m2f_cli/" in block)
    package = ROOT / "m2f_cli"
    named = set(re.findall(r"^    ([\w]+(?:/|\.py))", tree, re.MULTILINE))
    present = {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    present |= {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    assert named == present


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("writers", "docs/guides/predict.md"),
        ("shards", "docs/guides/large-batches.md"),
        ("metrics", "docs/guides/evaluate.md"),
        ("preparers", "docs/guides/prepare-datasets.md"),
    ],
)
def test_a_guide_names_every_part_of_its_group(group, page):
    missing = [name for name in plugins.names(group) if f"`{name}`" not in PAGES[page]]
    assert not missing


def test_the_readme_is_short():
    assert README.count("\n") <= 200 and len(README.encode()) <= 9000
    assert not [line for line in README.splitlines() if line.startswith("|") and len(line) > 100]
    assert TEST_COMMAND in README.splitlines()[:20] and "pip install -e . && m2f demo" in README.splitlines()[:20]

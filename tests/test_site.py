"""The documentation site is built strictly, by itself, and its generated pages say all that the code says."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

import m2f_cli as m2f
from m2f_cli import plugins
from m2f_cli.config import presets
from m2f_cli.config.schema import Config
from m2f_cli.evaluation.report import ResultsDocument
from m2f_cli.inference.journal import PredictionsDocument

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCES = sorted((ROOT / "m2f_cli").rglob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A missing package of the extra `docs` is a failure."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages():
    """The generated pages, by their place below docs/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        module = importlib.import_module("reference_pages")
    return {place: make() for place, make in module.PAGES.items()}


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//[^\s>]+", text)
        fetched += re.findall(r"<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+href=\"?(?:https?:)?//[^\s>]+", text)
        assert not fetched, page
    assert "fonts.googleapis" not in "".join(p.read_text("utf-8") for p in site.rglob("*.css"))


def test_code_is_no_part_of_the_site(site):
    assert not list(site.rglob("*.py")) and not list(site.rglob("__pycache__"))


def test_llms_txt_lists_every_page(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", text, re.MULTILINE)
    assert text.startswith("# m2f\n\n> ")
    assert sorted(listed) == sorted(
        p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.name != "404.html"
    )


def test_the_command_line_page_has_every_command_and_option(pages):
    page = pages["reference/cli.md"]
    for command in plugins.BUILT_IN["commands"]:
        assert f"## m2f {command}\n" in page
    for option in ("--task TASK", "--sweep-thresholds", "--stratify", "--keep-memory", "--threads"):
        assert f"`{option}" in page or f"/ {option}" in page, option
    assert "### m2f data check\n" in page and "### m2f presets copy\n" in page


def keys(node, path: str = ""):
    """Every key of the configuration, with dots."""
    for name, field in node.model_fields.items():
        yield f"{path}{name}", field
        for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if hasattr(inner, "model_fields") and inner.__name__ != "Component":
                yield from keys(inner, f"{path}{name}.")


def test_the_configuration_page_has_every_key_with_its_description(pages):
    page = pages["reference/configuration.md"]
    for key, field in keys(Config):
        assert field.description and len(field.description) > 10, key
        assert f"| `{key}` |" in page, key
    row = next(line for line in page.splitlines() if line.startswith("| `test.object_threshold` "))
    meaning = "Panoptic: least class probability of a query."
    assert row == f"| `test.object_threshold` | number (at least 0, at most 1) |  | {meaning} |"


def test_the_model_zoo_has_every_preset(pages):
    page = pages["reference/model-zoo.md"]
    assert not [name for name in presets.preset_names() if not re.search(rf"\b{name}\b", page)]
    assert "| 57.8 |" in page


def test_the_api_page_has_every_public_name(pages):
    page = pages["reference/api-details.md"]
    assert not [name for name in m2f.__all__ if name != "__version__" and f"heading: 'm2f.{name}'\n" not in page]


def test_the_parts_page_has_every_part(pages):
    page = pages["reference/parts.md"]
    for group in ("backbones", "pixel_decoders", "decoders", "transforms", "metrics"):
        for name, target in plugins.BUILT_IN[group].items():
            assert f"::: {target.replace(':', '.')}\n    options:\n      heading: '{name}'" in page


def test_the_errors_page_has_every_kind_and_code(pages):
    page = pages["reference/errors.md"]
    for name in re.findall(r"^class (\w+)\(", (ROOT / "m2f_cli" / "errors.py").read_text("utf-8"), re.MULTILINE):
        if name != "M2FError":
            assert f"| `{name}` | {getattr(m2f, name).exit_code} |" in page
    assert "| 130 |" in page


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_a_page_is_in_the_navigation(page):
    assert f"- {page.relative_to(DOCS).as_posix()}\n" in (ROOT / "mkdocs.yml").read_text("utf-8")


# --- pages that are written by hand and speak of the code -------------------------------------------------------------


@functools.cache
def texts_of_the_code() -> list[str]:
    """Every constant piece of text of the package; what stands between is filled in at run time."""
    pieces = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    return pieces


MESSAGES = re.findall(
    r"^\| `([^`]*)` \|", (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_troubleshooting_page_is_one_of_the_code(message):
    pieces = [piece for piece in re.split("…", message) if re.search(r"\w{2}", piece)]
    missing = [piece for piece in pieces if not any(piece.strip() in text for text in texts_of_the_code())]
    assert pieces and not missing


def test_every_environment_variable_is_on_its_page():
    page = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")))
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    read = set(re.findall(r"environ(?:\.get\(|\[|\.setdefault\()\"([A-Z0-9_]+)\"", code))
    ours = {name for name in re.findall(r"\bM2F_[A-Z_]+\b", code)}
    assert not (read | ours) - page
    assert not [name for name in page if name not in code and name not in ("NO_COLOR", "COLUMNS", "M2F_OPS")]


def test_every_format_has_its_row():
    page = (DOCS / "reference" / "data-formats.md").read_text(encoding="utf-8")
    for name in plugins.names("formats"):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        words = re.findall(r"[\w*{},.]*[{.*][\w*{},.]+", plugins.get("formats", name).layout)  # braces and file names
        assert words and not [word for word in words if word.rstrip(",.") not in row], name


def test_every_metric_has_its_row():
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in plugins.names("metrics") if f"`{name}`" not in page]


def test_every_extra_is_on_the_page_of_installation():
    page = (DOCS / "installation.md").read_text(encoding="utf-8")
    block = re.search(
        r"^\[project\.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    extras = re.findall(r"^(\w+) = \[", block[1], re.MULTILINE)
    assert "docs" in extras and not [name for name in extras if f"`{name}`" not in page]


def test_files_of_results_are_what_their_page_says(tmp_path):
    """Validation leaves out keys that a type does not have, and so finds them."""
    from helpers.small_segmenter import write_model
    from PIL import Image

    from m2f_cli import cli
    from m2f_cli.structures.categories import load_categories

    tiny = ["model.backbone.depth=18", "model.backbone.width=8", "model.pixel_decoder.num_layers=1"]
    config = m2f.load_config("tiny", [*tiny, "data.scenes.val=2", "data.scenes.size=[64, 96]"])
    model = str(write_model(tmp_path / "tiny.safetensors", config, load_categories("synthetic")))
    Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
    for task in ("panoptic", "instance", "semantic"):
        out = tmp_path / task
        assert (
            cli.run(["predict", str(tmp_path / "photo.png"), "--model", model, "--task", task, "--out", str(out)]) == 0
        )
        tree = json.loads((out / "predictions.json").read_text())
        assert TypeAdapter(PredictionsDocument).validate_python(tree, strict=True) == tree
    assert cli.run(["eval", "--model", model, "--out", str(tmp_path / "eval"), "--sweep-thresholds"]) == 0
    tree = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert TypeAdapter(ResultsDocument).validate_python(tree, strict=True) == tree
    assert {"scored", "threshold_sweep", "figures"} <= tree.keys()


def test_the_configuration_of_the_site_fetches_nothing():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    assert tree["theme"]["font"] is False and tree["strict"] is True and "extra_javascript" not in tree

"""Model cards of Hugging Face exports: what they say, what they do not claim, and names that mean something else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from export.models import segmenter_of
from helpers.small_segmenter import random_image
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from m2f_cli.config.presets import load as load_config
from m2f_cli.config.presets import overridden
from m2f_cli.errors import DataError
from m2f_cli.export.base import export
from m2f_cli.export.model_card import is_released, model_card
from m2f_cli.structures.categories import from_names


def front_matter(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def released(source: str = "coco-panoptic-swin-t (somewhere)", name: str = "coco-panoptic-swin-t"):
    model = segmenter_of("mask2former")
    model.config = load_config(name)
    model.source = source
    return model


@pytest.fixture
def run(tmp_path):
    """The files that a training writes beside its checkpoints."""
    folder = tmp_path / "runs" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    write(
        folder / "env.json", {"options": {"init": "coco-panoptic-swin-t", "val_pictures": 9}, "data": {"images": 1200}}
    )
    write(folder / "results.json", {"iteration": 40, "best": {"metric": "pq", "value": 51.25, "iteration": 20}})
    rows = [
        {"kind": "train", "iteration": 0, "loss": 3.0},
        {"kind": "val", "iteration": 20, "pq": 51.25, "sq": 80.5, "broken": None},
        {"kind": "val", "iteration": 40, "pq": 40.0, "sq": 70.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(path: Path, tree) -> None:
    path.write_text(json.dumps(tree))


def model_of(run: Path, name: str = "best.safetensors"):
    model = released(str(run / "checkpoints" / name))
    described = model.config.data.model_copy(update={"dataset": "my cells"})
    model.config = model.config.model_copy(update={"data": described})
    return model


# --- released weights -------------------------------------------------------------------------------------------------


def test_card_of_released_weights_has_their_figures_and_licence():
    model = released()
    text = model_card(model)
    assert front_matter(text)["license"] == "cc-by-nc-4.0"
    assert front_matter(text)["tags"] == [
        "image-segmentation",
        "mask2former",
        "panoptic-segmentation",
        "instance-segmentation",
        "semantic-segmentation",
    ]
    assert "| pq | 53.2 | single scale | Mask2Former model zoo |" in text
    assert "post_process_panoptic_segmentation" in text
    assert "No setting differs from it." in text and "model-index" not in text


def test_card_of_a_training_claims_nothing():
    text = model_card(released("runs/train/mine/checkpoints/best.safetensors"))
    assert "license" not in front_matter(text)
    assert "53.2" not in text
    assert "Not measured." in text
    assert "may bind these, too" in text


def test_which_weights_are_the_released_ones():
    for source, expected in (
        ("coco-panoptic-swin-t (somewhere)", True),
        ("downloads/model_final_9fd0ae.pkl", True),
        ("facebook/mask2former-swin-tiny-coco-panoptic", True),
        ("model_final.pth", False),
        ("runs/coco", False),
    ):
        assert is_released(released(source)) is expected, source


def test_a_checkpoint_cannot_call_itself_released():
    """Its configuration, with licences and figures, may be anybody's."""
    model = released("cells (here)")
    model.config = model.config.model_copy(update={"name": "cells"})
    assert not is_released(model) and "license" not in front_matter(model_card(model))


def test_the_repository_that_weights_come_from_is_their_base():
    hub = "facebook/mask2former-swin-tiny-coco-panoptic"
    assert front_matter(model_card(released(hub)))["base_model"] == hub
    assert "base_model" not in front_matter(model_card(released()))
    model = segmenter_of("mask2former")
    model.source = "someone/cells"
    assert front_matter(model_card(model))["base_model"] == "someone/cells"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_card_of_a_run_has_its_figures_for_people_and_for_the_hub(run):
    text = model_card(model_of(run))
    head = front_matter(text)
    name, [result, other] = model_index_to_eval_results(head["model-index"])
    assert name == "coco-panoptic-swin-t" and result.task_type == "image-segmentation"
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("my cells", "my-cells", "val")
    assert (result.metric_type, result.metric_value, result.metric_name) == ("pq", 51.25, "PQ")
    assert (other.metric_type, other.metric_value) == ("sq", 80.5)
    assert head["datasets"] == ["my-cells"] and "license" not in head
    assert head["base_model"] == "facebook/mask2former-swin-tiny-coco-panoptic"
    assert ModelCard(text).data.library_name == "transformers"
    figures = section(text, "Figures")
    assert "after 20 steps, on the split val of `my cells` (the first 9 images at most)" in figures
    assert "| `PQ` | 51.25 |" in figures and "| `SQ` | 80.50 |" in figures and "53.2" not in text
    assert "`coco-panoptic-swin-t` (CC-BY-NC-4.0), whose licence may bind" in section(text, "Licence")
    assert "Trained on `my cells` (1,200 images)" in section(text, "Data")


def test_figures_are_those_of_the_weights_or_none(run):
    assert "Not measured." in model_card(model_of(run, "last.safetensors"))
    assert "Not measured." in model_card(model_of(run, "iteration_0000010.safetensors"))
    write(run / "results.json", {"iteration": 40, "best": {"metric": "pq", "value": 51.25, "iteration": 40}})
    assert "| `PQ` | 51.25 |" in model_card(model_of(run, "last.safetensors"))
    with (run / "metrics.jsonl").open("a") as file:  # a later start found better weights, and was killed
        file.write(json.dumps({"kind": "val", "iteration": 60, "pq": 60.0}) + "\n")
    assert "Not measured." in model_card(model_of(run))


@pytest.mark.parametrize("best", [{}, None, {"metric": "pq", "value": float("nan"), "iteration": 20}])
def test_a_run_without_an_evaluation_has_no_figures(run, best):
    write(run / "results.json", {"iteration": 40, "best": best})
    assert "Not measured." in model_card(model_of(run))
    (run / "results.json").unlink()
    assert "Not measured." in model_card(model_of(run))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("env.json", "{"),
        ("env.json", "[]"),
        ("env.json", '{"options": 3}'),
        ("env.json", '{"data": {"images": "many"}}'),
        ("results.json", "[1]"),
        ("results.json", '{"best": {"metric": 3, "value": 1, "iteration": 2}}'),
        ("results.json", '{"best": {"metric": "pq", "value": "high", "iteration": 2}}'),
        ("metrics.jsonl", '{"kind": "val", \n'),
    ],
)
def test_damaged_files_of_a_run_are_one_sentence(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(str(run / name))):
        model_card(model_of(run))


def test_settings_that_differ_from_the_preset_are_listed():
    model = released("x.safetensors")
    model.config = overridden(model.config, ["test.object_threshold=0.5", "train.iterations=50"])
    rows = section(model_card(model), "Configuration").splitlines()
    assert "| `test.object_threshold` | `0.5` | `0.8` |" in rows
    assert "| `train.iterations` | `50` | `368750` |" in rows
    assert len([row for row in rows if row.startswith("| `")]) == 2


# --- names of strangers -----------------------------------------------------------------------------------------------

HOSTILE = [
    "a|b",
    "`x` ``y`` \\",
    "</td><script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![](http://127.0.0.1/x.png)",
    "# heading\n## another",
    "---\nlicense: mit\n---",
    "https://example.org @someone",
    "\u202eevil\x1b[31m",
    " ",
]


def outside_of_code(text: str) -> str:
    """Return Markdown without its spans of code, as CommonMark finds them: as many backquotes at both ends."""
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text.split("---\n", 2)[2])


def test_names_of_strangers_are_shown_and_mean_nothing(tmp_path):
    model = segmenter_of("mask2former")
    data = model.config.data.model_copy(update={"dataset": HOSTILE[6]})
    model.config = model.config.model_copy(update={"name": "x|<b>\n#y", "data": data, "summary": HOSTILE[2]})
    model.source = f"{tmp_path}/{HOSTILE[2]}|`{HOSTILE[5]}"
    model.categories = from_names(HOSTILE)
    text = model_card(model)
    head = front_matter(text)
    assert "license" not in head and head["datasets"] == ["license-mit"]
    rows = section(text, "Classes").strip().splitlines()[2:]
    assert len(rows) == len(HOSTILE) and all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)
    rest = outside_of_code(text)
    for mark in ("<", "javascript", "![", "someone", "license: mit", "\u202e", "\x1b"):
        assert mark not in rest, mark
    assert "\u202e" not in text and "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# `x|<b>\\n#y`",
        *(f"## {title}" for title in ("How to use it", "Figures", "Classes", "Licence", "Data", "Configuration")),
    ]


def test_metadata_of_strangers_is_data(run):
    write(run / "results.json", {"best": {"metric": "pq: [\n- x", "value": 1, "iteration": 2}})
    model = model_of(run)
    data = model.config.data.model_copy(update={"dataset": "a: !!python/object:os.system\n---\nb"})
    model.config = model.config.model_copy(update={"data": data})
    [entry] = front_matter(model_card(model))["model-index"][0]["results"]
    assert entry["dataset"]["name"] == "a: !!python/object:os.system\\n---\\nb"
    assert entry["metrics"] == [{"type": "pq: [\\n- x", "value": 1.0, "name": "pq: [\\n- x"}]


def test_of_many_classes_two_hundred_are_listed():
    model = segmenter_of("mask2former")
    model.categories = from_names([f"class {i}" for i in range(230)])
    text = section(model_card(model), "Classes")
    assert "| 199 | `class 199` | thing |" in text and "class 200" not in text
    assert "And 30 more of 230 classes" in text


# --- the code in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "task"), [("mask2former", "instance"), ("maskformer", "panoptic")])
def test_the_code_for_transformers_runs(tmp_path, monkeypatch, name, task):
    model = segmenter_of(name)
    model.config = model.config.model_copy(update={"task": task})
    folder = export(model, tmp_path / "folder", "huggingface").path
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    Image.fromarray(random_image(60, 90, seed=1)).save("picture.jpg")
    scope: dict = {}
    exec(code, scope)
    assert scope["result"]["segmentation"].shape == (60, 90)

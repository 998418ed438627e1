"""The presets of MP-Former: its rows, settings and schedules as docs/methods/published-behaviour.md#1-5, #2-5 and #6-6
have them; and FaPN's."""

from __future__ import annotations

import re

import pytest
import yaml
from helpers import facts
from helpers.presets import shipped

from m2f_cli.commands import presets as command
from m2f_cli.config import presets as config
from m2f_cli.config.schema import PilotingConfig
from m2f_cli.structures.categories import load_categories, load_class_table

ALL = {name: shipped(name) for name in config.preset_names() if name.startswith("mpformer-")}
OURS = ("mpformer-mass13k-r50", "mpformer-nuinsseg-panoptic-r50")  # recipes that nobody published
PUBLISHED = {  # docs/methods/published-behaviour.md#1-5: metric, value, setting, whether verified
    "mpformer-coco-instance-r50-12ep": [("ap", 40.15, "single scale", True)],
    "mpformer-cityscapes-instance-r50": [("ap", 39.7, "derived", False)],
    "mpformer-cityscapes-r50": [("miou", 81.0, "derived", False)],
    "mpformer-cityscapes-panoptic-swin-l": [("pq", 67.5, "single scale", False)],
    "mpformer-cityscapes-instance-swin-l": [("ap", 44.9, "single scale", False)],
    "mpformer-coco-panoptic-swin-l": [("pq", 58.1, "single scale", False)],
    "mpformer-ade20k-panoptic-swin-l": [("pq", 49.4, "single scale", False)],
    "mpformer-ade20k-swin-l": [("miou", 56.9, "single scale", False)],
    "mpformer-mass13k-r50": [("miou", 87.76, "val", False), ("miou", 87.18, "test", False)],
    "mpformer-nuinsseg-panoptic-r50": [("pq", 44.73, "single scale", False)],
}
NAME = re.compile(
    r"mpformer-(?P<dataset>coco|cityscapes|ade20k|mass13k|nuinsseg)(-(?P<task>panoptic|instance))?"
    r"-(?P<backbone>r50|r101|swin-l)(-(\d+ep|150k))?"
)


def test_published_rows_are_there():
    found = {
        name: [(f.metric, f.value, f.setting, f.verified) for f in preset.published]
        for name, preset in ALL.items()
        if preset.published
    }
    assert found == PUBLISHED and len(ALL) == 24


def test_the_figures_are_those_of_the_facts():
    section = facts.section("1.5")
    for rows in PUBLISHED.values():
        for _, value, _, verified in rows:
            lines = [line for line in section.splitlines() if line.startswith("|") and f"{value}" in line]
            assert lines, value
            assert verified == any("| verified" in line for line in lines)


@pytest.mark.parametrize("name", ALL)
def test_what_is_inside(name):
    preset, said = ALL[name], NAME.fullmatch(name).groupdict()
    assert (preset.model.method, preset.name) == ("mpformer", name)
    assert preset.data.dataset == said["dataset"] and preset.task == (said["task"] or "semantic")
    assert command.backbone_label(preset) == said["backbone"]
    wide = said["backbone"] == "swin-l" and preset.task != "semantic"
    queries = 200 if wide else 300 if said["dataset"] == "nuinsseg" else 100
    assert preset.model.decoder.options["num_queries"] == queries
    assert preset.model.decoder.options.keys() == {"dim", "num_queries", "num_layers", "num_heads", "ffn_dim"}
    assert ("ours" in preset.summary) == (name in OURS)


@pytest.mark.parametrize("name", ALL)
def test_pilots_as_in_the_published_script(name):
    expected = PilotingConfig(groups=1)
    # docs/methods/published-behaviour.md#6-6: a path that the authors left in their code
    if name == "mpformer-coco-panoptic-swin-l":
        expected = PilotingConfig(groups=1, layers=4, label_noise=0.0)
    assert ALL[name].model.piloting == expected
    assert (expected.mask_noise, expected.class_loss, expected.noise_per_head) == (0.0, True, False)


def recipe_of(name: str) -> tuple[int, tuple[int, ...]]:
    train = ALL[name].train
    assert (train.schedule.name, train.schedule.gamma, train.schedule.warmup_iterations) == ("step", 0.1, 0)
    return train.iterations, train.schedule.steps


@pytest.mark.parametrize("name", [name for name in ALL if name not in OURS])
def test_all_else_is_mask2formers(name):
    """But for the schedule, the positions and the pilots (docs/methods/published-behaviour.md#2-5)."""
    twin = re.sub(r"mpformer-|-\d+ep|-150k", "", name)
    semantic = ALL[name].task == "semantic"
    other = config.load(f"{twin}-paper" if semantic else twin)
    ours = ALL[name]
    assert (ours.test, ours.input, ours.data, ours.task) == (other.test, other.input, other.data, other.task)
    parts = ("backbone", "pixel_decoder", "decoder")
    assert all(getattr(ours.model, part) == getattr(other.model, part) for part in parts)
    own = {"iterations": 0, "schedule": None, "hardware": ""}
    assert ours.train.model_copy(update=own) == other.train.model_copy(update=own)


def test_schedules_are_those_of_the_facts():
    section = facts.section("2.5")
    published = [row for row in facts.rows(section) if row.get("config", "").endswith("ep") and "it" in row]
    assert [row["config"] for row in published] == ["12ep", "24ep", "36ep", "50ep"]
    for row in published:
        epochs = int(row["config"].removesuffix("ep"))
        expected = int(row["it"]), tuple(map(int, row["steps"].split(",")))
        assert recipe_of(f"mpformer-coco-instance-r50-{epochs}ep") == expected
        if epochs in (12, 36):
            assert recipe_of(f"mpformer-coco-panoptic-r50-{epochs}ep") == expected
    assert "steps 80000,85000 of 90000" in section and "steps 135000,150000 of 160000" in section
    for name in ALL:
        if name == "mpformer-cityscapes-r50-150k":
            assert recipe_of(name) == (150000, (80000, 85000))
        elif "cityscapes" in name:
            assert recipe_of(name) == (90000, (80000, 85000))
        elif "ade20k" in name:
            assert recipe_of(name) == (160000, (135000, 150000))


def test_only_one_has_released_weights():
    [(name, [source])] = [(name, preset.weights) for name, preset in ALL.items() if preset.weights]
    assert name == "mpformer-coco-instance-r50-12ep"
    assert (source.format, source.licence) == ("detectron2", "CC-BY-NC-4.0")
    assert source.url.endswith("/releases/download/checkpoint/model_final.pth")


def test_recipes_of_ours_say_so():
    for name in OURS:
        recipe, _ = yaml.safe_load((config.presets_dir() / f"{name}.yaml").read_text())["extends"]
        assert "OURS" in (config.presets_dir() / f"{recipe}.yaml").read_text()


def test_classes_of_mass13k_and_nuinsseg():
    table = load_class_table("mass13k")
    assert [c.name for c in table.categories][:2] == ["background", "person"]  # a trained class: no label reduction
    assert [c.id for c in table.categories] == list(range(7)) and table.ignore_index == 255
    [nucleus] = load_categories("nuinsseg")
    assert nucleus.isthing


def test_fapn_is_a_choice_of_a_part():
    fapn, plain = config.load("ade20k-swin-l-fapn"), config.load("ade20k-swin-l-paper")
    assert fapn.model.pixel_decoder.name == "fapn" and not fapn.weights
    assert fapn.model.model_copy(update={"pixel_decoder": plain.model.pixel_decoder}) == plain.model
    assert fapn.train.model_copy(update={"hardware": plain.train.hardware}) == plain.train and fapn.test == plain.test

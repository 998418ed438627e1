"""Which metrics are chosen, and what is said when one does not apply."""

from __future__ import annotations

import pytest
from helpers.fake_segmenter import CATEGORIES

from m2f_cli import plugins
from m2f_cli.errors import ConfigError
from m2f_cli.evaluation.choose_metrics import choose, known_names, limits, task_for, task_of
from m2f_cli.evaluation.setup import DataOptions, MetricOptions, name_of, with_default
from m2f_cli.inference.load import ModelOptions
from m2f_cli.structures.categories import from_names

EVERY = ("panoptic", "instance", "semantic")


def test_each_metric_of_the_table_has_a_task():
    assert {name: task_of(name) for name in ("pq", "ap", "miou", "boundary-ap", "pq-stuff")} == {
        "pq": "panoptic",
        "ap": "instance",
        "miou": "semantic",
        "boundary-ap": "instance",
        "pq-stuff": "semantic",
    }
    assert all(task_of(name) in EVERY for name in plugins.names("metrics"))


@pytest.mark.parametrize(
    ("metrics", "task", "model"),
    [
        (["pq"], None, "coco-panoptic-swin-t"),
        (["boundary-ap"], None, "coco-instance-swin-t"),
        (["miou"], None, "ade20k-swin-t"),
        (["pq", "miou"], None, "coco-panoptic-swin-t"),
        (["all"], None, "coco-panoptic-swin-t"),
        (["all"], "semantic", "ade20k-swin-t"),
    ],
)
def test_a_metric_alone_stands_for_a_default_model(metrics, task, model):
    assert with_default(ModelOptions(task=task), MetricOptions(metrics)).ref == model


def test_a_model_that_is_named_is_not_replaced_by_a_default():
    for named in (ModelOptions(preset="a"), ModelOptions("b"), ModelOptions("b", "a")):
        assert with_default(named, MetricOptions(["pq"])) == named
    assert task_for(["ap", "boundary-ap"]) == "instance"


@pytest.mark.parametrize(
    ("model", "split", "name"),
    [
        (ModelOptions(), "val", "coco-panoptic-swin-t"),
        (ModelOptions("runs/train/mine/checkpoints/best.safetensors"), "val", "mine"),
        (ModelOptions("some/model_final.pkl"), "train", "model_final-train"),
        (ModelOptions("x", "my.yaml", tta=True), "val", "my-tta"),
        (ModelOptions("facebook/mask2former-swin"), "val", "mask2former-swin"),
    ],
)
def test_names_of_evaluations(model, split, name):
    assert name_of(model, DataOptions(split=split), MetricOptions(["pq"])) == name


def test_all_are_those_that_apply():
    found, _ = choose(["all"], CATEGORIES, EVERY, "panoptic")
    assert {"pq", "ap", "miou"} <= set(found)
    found, _ = choose(["all"], CATEGORIES, ["semantic"], "semantic")
    assert {metric.task for metric in found.values()} == {"semantic"} and "miou" in found
    nothing_countable = from_names(["sky", "grass"], [])
    found, notes = choose(["all"], nothing_countable, EVERY, "panoptic")
    assert "ap" not in found and "pq" in found and any("Without the metric ap" in note for note in notes)


def test_without_a_name_it_is_the_tasks_own():
    assert [list(choose([], CATEGORIES, EVERY, task)[0]) for task in EVERY] == [["pq"], ["ap"], ["miou"]]


def test_what_does_not_apply_says_what_does():
    with pytest.raises(ConfigError, match="'pq' is about panoptic results, and m does semantic.*boundary-iou.*miou"):
        choose(["pq"], CATEGORIES, ["semantic"], "semantic", model="m")
    with pytest.raises(ConfigError, match="countable"):
        choose(["ap"], from_names(["sky"], []), EVERY, "panoptic")
    with pytest.raises(ConfigError, match="no metric named 'mio'. Did you mean miou"):
        known_names(["mio"])
    assert known_names(["pq", "all"]) == ["all"] and known_names(["pq", "pq"]) == ["pq"]


def test_the_most_objects():
    assert [limits(n) for n in (1, 5, 10, 100, 400)] == [[1], [1, 5], [1, 10], [1, 10, 100], [1, 10, 400]]
    [metric] = choose(["ap"], CATEGORIES, EVERY, "panoptic", max_dets=400)[0].values()
    assert metric.max_dets == (1, 10, 400) and metric.fresh().max_dets == (1, 10, 400)
    with pytest.raises(ConfigError, match="which is none of: miou"):
        choose(["miou"], CATEGORIES, EVERY, "panoptic", max_dets=400)

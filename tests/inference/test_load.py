"""From options to a segmenter: settings, presets, and what stands around the network."""

from __future__ import annotations

import copy

import pytest
from helpers.small_segmenter import random_image, small_segmenter

from m2f_cli.errors import ConfigError
from m2f_cli.inference import load
from m2f_cli.inference.base import BaseSegmenter, Wrapper, innermost
from m2f_cli.inference.load import ModelOptions, open_model
from m2f_cli.inference.sliding_window import sliding
from m2f_cli.inference.tta import with_tta

SLIDE = "test.slide={crop: [48, 48], stride: [32, 32]}"


@pytest.fixture
def loads(monkeypatch):
    """What `load` was asked for; it gives a small model of three tasks."""
    asked = []

    def given(ref, **options):
        asked.append((ref, options))
        return copy.copy(small_segmenter())

    monkeypatch.setattr(load, "load", given)
    return asked


@pytest.mark.parametrize(
    ("options", "ref"),
    [
        (ModelOptions(), "coco-panoptic-swin-t"),
        (ModelOptions(task="instance"), "coco-instance-swin-t"),
        (ModelOptions(preset="ade20k-swin-t"), "ade20k-swin-t"),
        (ModelOptions("mine", task="semantic"), "mine"),
    ],
)
def test_the_model_that_is_named_or_the_default_of_the_task(loads, options, ref):
    model = open_model(options)
    assert loads[0][0] == ref and model.default_task == (options.task or "panoptic")
    assert small_segmenter().default_task == "panoptic"


def test_a_task_that_the_model_does_not_do_is_refused(monkeypatch):
    monkeypatch.setattr(load, "load", lambda ref, **options: small_segmenter("ade20k-r50-paper"))
    with pytest.raises(ConfigError, match="not 'instance'"):
        open_model(ModelOptions("mine", task="instance"))


def test_overrides_change_the_settings_and_what_stands_around_the_network(loads):
    model = open_model(ModelOptions("mine", overrides=("test.object_threshold=0.1",)))
    assert model.config.test.object_threshold == 0.1 and not isinstance(model, Wrapper)
    windows = open_model(ModelOptions("mine", overrides=(SLIDE,)))
    assert windows.tasks == ("semantic",) and innermost(windows).config.test.slide is not None
    assert windows(random_image()).size == (50, 70)


def test_windows_that_a_model_asks_for_can_be_taken_away(monkeypatch):
    slid = sliding(small_segmenter("ade20k-r50-paper", SLIDE))
    monkeypatch.setattr(load, "load", lambda ref, **options: slid)
    assert isinstance(open_model(ModelOptions("mine")), Wrapper)
    assert not isinstance(open_model(ModelOptions("mine", overrides=("test.slide=null",))), Wrapper)


def test_a_preset_with_other_classes_than_the_weights_is_refused(loads):
    with pytest.raises(ConfigError, match="has 133 classes and .* has 6"):
        open_model(ModelOptions("mine", "coco-panoptic-swin-t"))


def test_a_configuration_without_weights_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: coco-panoptic-swin-t\n")
    with pytest.raises(ConfigError, match="without weights"):
        open_model(ModelOptions(preset=str(path)))


def test_tiles_stand_around_views(loads):
    model = open_model(ModelOptions("mine", tta=True, tile=64, tile_overlap=0.5))
    assert [type(each).__name__ for each in (model, model.inner)] == ["Tiled", "Augmented"]
    assert (model.tile, model.overlap) == (64, 32) and len(model.notes) == 2


def test_wrappers_give_what_the_contract_asks_for():
    for model in (small_segmenter(), with_tta(small_segmenter())):
        assert isinstance(model, BaseSegmenter)
        [raw] = model.infer([model.prepare(random_image())])
        results = model.finish_all(raw, ["panoptic", "semantic"])
        assert {task: result.size for task, result in results.items()} == {"panoptic": (50, 70), "semantic": (50, 70)}
        assert (model.semantic_scores(raw)(0, 50).argmax(0).cpu().numpy() == results["semantic"].labels_HW).all()
    with pytest.raises(TypeError, match="abstract"):
        BaseSegmenter()

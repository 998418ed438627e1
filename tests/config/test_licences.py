"""Which released weights may be used commercially, and what m2f says of them."""

from __future__ import annotations

import pytest
from helpers.presets import shipped
from pydantic import ValidationError

from m2f_cli.config import licences
from m2f_cli.config import presets as config
from m2f_cli.config.schema import WeightsSource
from m2f_cli.errors import ConfigError

TASKS = ("panoptic", "instance", "semantic")


def test_the_use_of_every_licence_of_a_preset_is_known():
    stated = {source.licence for name in config.preset_names() for source in shipped(name).weights}
    assert stated <= licences.COMMERCIAL.keys() and licences.CONDITIONS.keys() <= licences.COMMERCIAL.keys()


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("coco-panoptic-swin-l", False),  # CC-BY-NC
        ("coco-panoptic-swin-l-mmdet", True),
        ("eomt-coco-panoptic-l-640", True),
        ("pmt-coco-panoptic-l-640", True),
        ("eomt-coco-panoptic-s-640-12ep", False),  # no weights
        ("tiny", False),
    ],
)
def test_only_released_weights_with_a_permissive_licence_are_for_commercial_use(name, may):
    assert licences.is_commercial(shipped(name)) is may


def test_an_unknown_licence_is_no_permission():
    source = shipped("tiny").model_copy(
        update={"weights": (WeightsSource(url="https://x/y.pth", format="m2f", licence="Proprietary"),)}
    )
    assert not licences.is_commercial(source)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_one_commercial_default(task):
    marked = [name for name in config.preset_names() if shipped(name).commercial_default and shipped(name).task == task]
    assert [licences.commercial_model(task).name] == marked
    assert licences.is_commercial(shipped(marked[0])) and shipped(marked[0]).weights[0].licence == "MIT"


def test_a_preset_that_extends_the_default_is_not_the_default(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: eomt-coco-panoptic-l-640\n")
    assert not config.load(path).commercial_default


def test_what_a_user_should_know_is_said():
    [mit] = licences.remarks(shipped("eomt-coco-panoptic-l-640"))
    assert "MIT (read in the repository of the code; look at the card" in mit
    _, conditions = licences.remarks(shipped("pmt-coco-panoptic-l-640"))
    assert "no military" in conditions and "needs a click" in conditions
    assert licences.remarks(shipped("coco-panoptic-swin-l-mmdet")) == [
        "The licence of coco-panoptic-swin-l-mmdet is Apache-2.0."
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco-panoptic-swin-t", "are under CC-BY-NC-4.0; --commercial asks for others"),
        ("tiny", "are not released"),
        ("runs/mine", "is no preset, so m2f does not know the licence"),
    ],
)
def test_a_model_that_is_not_for_commercial_use_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        licences.check_commercial(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "https://x/y.pth", "file": "y.pth"}, "give hub, too"),
        ({"hub": "a/b", "kind": "delta"}, "base belongs to delta and decoder_only"),
        ({"hub": "a/b", "base": "c/d"}, "base belongs to delta and decoder_only"),
    ],
)
def test_a_source_of_weights_is_consistent(settings, message):
    with pytest.raises(ValidationError, match=message):
        WeightsSource(format="m2f", licence="MIT", **settings)

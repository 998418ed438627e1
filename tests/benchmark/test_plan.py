"""Plans of large predictions: what is measured, and what follows for many images and workers."""

from __future__ import annotations

import pytest

from m2f_cli import cli
from m2f_cli.benchmark import plan as plans
from m2f_cli.benchmark.case import Case
from m2f_cli.errors import ConfigError

CASE = Case("predict", preset="tiny-mpformer", size=(64, 96), images=8, device="cpu")
STAGES = {"read": 10.0, "prepare": 5.0, "network": 400.0, "post_process": 60.0, "write": 25.0}


def outlooks(efficiency, driver_seconds, images=3_600_000):
    return [plans.outlook(images, n, 2.0, STAGES, efficiency, driver_seconds) for n in (1, 8, 64)]


def test_hours_follow_the_speed_that_is_left_beside_each_other():
    """2 images/s alone, 90 % of it beside others: 14.4 and 115.2; the driver can hand out 1000 a second."""
    one, few, many = outlooks(0.9, 0.001)
    assert (one.images_per_second, few.images_per_second) == (2.0, pytest.approx(14.4))
    assert many.images_per_second == pytest.approx(115.2)
    assert [each.hours for each in (one, few, many)] == pytest.approx([500.0, 1000 / 14.4, 1000 / 115.2])
    assert few.device_hours == pytest.approx(8 * few.hours)
    assert {each.bottleneck for each in (one, few, many)} == {"network"}


def test_the_driver_limits_many_workers():
    """10 ms for each image are 100 images/s, whatever the workers could do."""
    one, few, many = outlooks(0.9, 0.01)
    assert [each.bottleneck for each in (one, few, many)] == ["network", "network", "driver"]
    assert many.images_per_second == pytest.approx(100.0)
    assert many.device_hours == pytest.approx(64 * 10.0)


def test_without_a_second_device_workers_keep_their_speed():
    assert [each.images_per_second for each in outlooks(None, None)] == [2.0, 16.0, 128.0]


def test_a_plan_measures_images_of_this_machine(monkeypatch):
    monkeypatch.setattr(plans, "usable_cores", lambda: 1)  # no further processes
    said = []
    found = plans.make_plan(CASE, 1000, on_phase=said.append)
    assert found.measured == 8 and said == ["Segmenting 8 images in one process."]
    assert (found.efficiency, found.driver_ms) == (None, None)
    assert list(found.stages_ms) == list(plans.STAGES) and found.stages_ms["network"] > 0
    one = found.outlooks[0]
    assert one.hours == pytest.approx(1000 / found.images_per_second / 3600)
    assert found.bytes_per_image > 100 and found.to_dict()["outlooks"][0]["workers"] == 1


@pytest.mark.slow
def test_two_processes_show_what_is_left_of_their_speed(monkeypatch):
    monkeypatch.setattr(plans, "usable_cores", lambda: 2)
    found = plans.make_plan(CASE, 1000)
    assert 0 < found.efficiency <= 1 and found.driver_ms > 0


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="8 images or more, not 4"):
        plans.make_plan(Case("predict", preset="tiny-mpformer", size=(64, 96), images=4), 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--what", "forward"], "--what changes nothing"),
        (["--against", "huggingface"], "--against changes nothing"),
        (["--rounds", "3"], "--rounds changes nothing"),
        (["--preset", "all"], "for one model"),
    ],
)
def test_options_that_a_plan_has_no_use_for(options, said, capsys):
    assert cli.run(["bench", "--plan", "1000", *options]) == 2
    assert said in capsys.readouterr().err

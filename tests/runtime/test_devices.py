"""The devices that --devices names."""

from __future__ import annotations

import pytest

from m2f_cli.errors import ConfigError
from m2f_cli.runtime.devices import several_devices


@pytest.mark.parametrize(
    ("text", "devices"),
    [("2", ["cpu", "cpu"]), ("cpu:3", ["cpu"] * 3), ("cpu, cpu:1", ["cpu", "cpu"]), ("cpu", ["cpu"])],
)
def test_devices_are_a_number_or_a_list(text, devices):
    assert several_devices(text, "cpu") == devices


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "no number of processes. One GPU alone is --device cuda:0"),
        ("0,99", "this machine has"),
        ("cuda:99", "this machine has"),
        (",", "names no device"),
        ("tpu9", "The device 'tpu9' cannot be used"),
    ],
)
def test_devices_that_are_not_here(text, says):
    with pytest.raises(ConfigError, match=says):
        several_devices(text, "cpu")

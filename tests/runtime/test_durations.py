"""Durations that people write."""

from __future__ import annotations

import pytest

from m2f_cli.errors import ConfigError
from m2f_cli.runtime.durations import parse_duration, spoken_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("3600s", 3600), ("1.5H", 5400), ("1d2h3m4s", 93784), (" 5s ", 5)],
)
def test_a_duration_is_seconds(text, seconds):
    assert parse_duration(text, "--time-budget") == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "30m1h", "2 hours", "-1h", "0s", "1h30", "9" * 50 + "s", "1e3s", "٣x"])
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"--time-budget takes a duration with its unit, not .* 90m, 2h, 1h30m"):
        parse_duration(text, "--time-budget")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (45.4, "45 s"), (300, "5 min"), (7260, "2 h 1 min"), (864_000, "10.0 days")],
)
def test_a_duration_for_people(seconds, text):
    assert spoken_duration(seconds) == text

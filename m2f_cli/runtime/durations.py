"""Durations that people write, such as 90m or 1h30m."""

from __future__ import annotations

import math
import re

from ..errors import ConfigError

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = (86_400, 3600, 60, 1)
_LONGEST_TEXT = 40


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of a duration such as 2h, 90m, 1h30m, 3600s or 1d.

    Args:
        option: where the text comes from, for the message.

    Raises:
        ConfigError: the text is no duration above 0.
    """
    found = _PARTS.fullmatch(text.strip().lower()) if len(text) <= _LONGEST_TEXT else None
    numbers = found.groups() if found is not None else ()
    seconds = sum(float(number) * unit for number, unit in zip(numbers, _SECONDS, strict=False) if number)
    if not (0 < seconds < math.inf):
        raise ConfigError(
            f"{option} takes a duration with its unit, not {text[:_LONGEST_TEXT]!r}.",
            hint="For example: 90m, 2h, 1h30m or 3600s.",
        )
    return seconds


def spoken_duration(seconds: float) -> str:
    """Return a duration for people: 45 s, 12 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 60 * 48 else f"{minutes / 1440:.1f} days"

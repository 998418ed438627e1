"""Learning rate as a pure function of the iteration."""

from __future__ import annotations

import bisect
import math

from ..config.schema import ScheduleConfig


def factor(iteration: int, iterations: int, config: ScheduleConfig) -> float:
    """Return the factor of the base learning rate in an iteration, which is counted from 0.

    poly: (1 - it/iterations)^power. step: gamma^(steps passed). cosine: (1 + cos(π·it/iterations)) / 2. constant: 1.
    During the warm-up it is also multiplied with a line from `warmup_factor` to 1. Afterwards it is at least `floor`.
    """
    progress = min(iteration / iterations, 1.0)
    course = {
        "poly": lambda: (1.0 - progress) ** config.power,
        "step": lambda: config.gamma ** bisect.bisect_right(sorted(config.steps), iteration),
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * progress)),
        "constant": lambda: 1.0,
    }[config.name]()
    if iteration < config.warmup_iterations:
        return course * _warmup(iteration, config)
    return max(course, config.floor)


def _warmup(iteration: int, config: ScheduleConfig) -> float:
    share = iteration / config.warmup_iterations
    return config.warmup_factor * (1.0 - share) + share

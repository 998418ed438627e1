"""Learning rate as a pure function of the iteration."""

from __future__ import annotations

import bisect
import math

from ..config.schema import ScheduleConfig


def factor(iteration: int, iterations: int, config: ScheduleConfig, *, is_pretrained: bool = False) -> float:
    """Return the factor of the base learning rate in an iteration, which is counted from 0.

    poly: (1 - it/iterations)^power. step: gamma^(steps passed). cosine: (1 + cos(π·it/iterations)) / 2. constant: 1.
    During the warm-up it is also multiplied with a line from `warmup_factor` to 1. Afterwards it is at least `floor`.
    With `warmup_first`, the warm-up is that line alone, and `it` and `iterations` count from its end.

    Args:
        iteration: number of the iteration, from 0.
        iterations: number of all iterations.
        config: the schedule.
        is_pretrained: the factor of pretrained parts, which may have a warm-up of their own after the other one.
    """
    begin, warmup = 0, config.warmup_iterations
    if is_pretrained and config.backbone_warmup_iterations is not None:
        begin, warmup = warmup, config.backbone_warmup_iterations
    if iteration < begin:
        return 0.0
    end = begin + warmup
    if config.warmup_first:
        if iteration < end:
            return _line((iteration - begin) / warmup, config)
        return max(_course(iteration, min((iteration - end) / max(iterations - end, 1), 1.0), config), config.floor)
    course = _course(iteration, min(iteration / iterations, 1.0), config)
    return course * _line(iteration / warmup, config) if iteration < end else max(course, config.floor)


def _course(iteration: int, progress: float, config: ScheduleConfig) -> float:
    courses = {
        "poly": lambda: (1.0 - progress) ** config.power,
        "step": lambda: config.gamma ** bisect.bisect_right(sorted(config.steps), iteration),
        "cosine": lambda: config.end + (1.0 - config.end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
        "constant": lambda: 1.0,
    }
    return courses[config.name]()


def _line(share: float, config: ScheduleConfig) -> float:
    return config.warmup_factor * (1.0 - share) + share

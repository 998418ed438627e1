"""Augmentation: small steps that change an image and its annotation together.

A step is called with a sample and a random generator. It draws from the generator in the order that its docstring
states, so that a sample is a function of the generator's seed. A step from another package needs only the same
`__call__`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ... import plugins
from ...config.schema import Component
from ...errors import ConfigError
from .base import Sample, Transform


def build_transforms(components: Sequence[Component], *, trust_code: bool = False) -> list[Transform]:
    """Return the steps that a configuration lists, in order.

    Args:
        trust_code: True if the configuration may name code ("module:object").

    Raises:
        ConfigError: a step is unknown, its options are unknown, missing or out of range, or it is code without
            `trust_code`.
    """
    return [_build(component, trust_code) for component in components]


def _build(component: Component, trust_code: bool) -> Transform:
    step = plugins.get("transforms", component.name, trust_code=trust_code)
    try:
        made = step(**component.options)
        # The call above refuses unknown options, which pydantic passes over. Pydantic refuses values of wrong types.
        return TypeAdapter(step).validate_python(component.options) if is_dataclass(step) else made
    except ValidationError as error:
        first = error.errors()[0]
        said = (
            f"{first['loc'][0]} = {component.options[first['loc'][0]]!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        )
        raise ConfigError(f"The augmentation step {component.name} makes no sense: {said}.") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The augmentation step {component.name} makes no sense: {error}.") from error


def augment(sample: Sample, steps: Sequence[Transform], rng: np.random.Generator) -> Sample:
    """Apply all steps, one after the other."""
    for step in steps:
        sample = step(sample, rng)
    return sample

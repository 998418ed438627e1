"""Licences of released weights: which of them allow commercial use. This module imports no torch.

It repeats what licences say of use; it is no legal advice (docs/guides/commercial-use.md).
"""

from __future__ import annotations

from ..errors import ConfigError
from .presets import load, preset_names
from .schema import Config, WeightsSource

# Whether a licence allows commercial use. One that is not here does not.
COMMERCIAL = {"MIT": True, "Apache-2.0": True, "BSD-3-Clause": True, "MIT and DINOv3": True, "CC-BY-NC-4.0": False}
CONDITIONS = {
    "MIT and DINOv3": "The DINOv3 licence has conditions: pass it on with the weights and what you make of them, "
    "acknowledge DINOv3 in publications, no military, weapons or nuclear uses. The encoder needs a click on it.",
}
UNVERIFIED = "read in the repository of the code; look at the card of the weights before you rely on it"


def is_commercial(config: Config) -> bool:
    """Return True if a preset has weights, and the licence of those that are used allows commercial use."""
    return bool(config.weights) and COMMERCIAL.get(config.weights[0].licence, False)


def licence_cell(source: WeightsSource) -> str:
    """Return the licence, with a question mark where it is not verified."""
    return source.licence if source.licence_verified else f"{source.licence}?"


def remarks(config: Config) -> list[str]:
    """Return what somebody should know who uses the weights of a preset commercially."""
    source = config.weights[0]
    licence = f"The licence of {config.name} is {source.licence}"
    said = [f"{licence}." if source.licence_verified else f"{licence} ({UNVERIFIED})."]
    return [*said, *([CONDITIONS[source.licence]] if source.licence in CONDITIONS else [])]


def commercial_model(task: str) -> Config:
    """Return the preset that a task is done with where only weights for commercial use are wanted.

    Raises:
        ConfigError: no preset is that of the task.
    """
    for config in map(load, preset_names()):
        if config.commercial_default and config.task == task and is_commercial(config):
            return config
    raise ConfigError(
        f"No preset is the commercial default of {task} segmentation.", hint="m2f presets list --commercial"
    )


def check_commercial(name: str) -> Config:
    """Return a preset whose weights may be used commercially.

    Raises:
        ConfigError: they may not, there are none, or it is no preset, so that nothing says its licence.
    """
    if name not in preset_names():
        raise ConfigError(
            f"{name} is no preset, so m2f does not know the licence of its weights.",
            hint="Leave --commercial out, and look at the licence yourself.",
        )
    config = load(name)
    if not is_commercial(config):
        licence = f"under {config.weights[0].licence}" if config.weights else "not released"
        raise ConfigError(
            f"The weights of {name} are {licence}; --commercial asks for others.",
            hint="Choose one of: m2f presets list --commercial",
        )
    return config

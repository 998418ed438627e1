"""Small parts that several networks share."""

from __future__ import annotations

from torch import nn


def xavier_init(module: nn.Module) -> None:
    """Initialise every weight of two or more dimensions below `module` (Xavier, uniform); leave biases as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)

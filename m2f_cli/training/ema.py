"""Exponential moving average of a network's weights, which is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Moving average of a network: average ← decay · average + (1 - decay) · value, after each step.

    The decay is at most (1 + updates) / (10 + updates), so that the average forgets the random start quickly.
    Tensors that are not floating point are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the network the averaged weights inside the block, and its own again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the state is not one of this network.
        """
        updates, average = state["updates"], state["average"]
        if type(updates) is not int or updates < 0 or average.keys() != self.average.keys():
            raise ValueError("the average is of another network")
        if any(tensor.shape != self.average[name].shape for name, tensor in average.items()):
            raise ValueError("the average has tensors of other shapes")
        self.updates = updates
        for name, tensor in average.items():
            self.average[name].copy_(tensor)

"""A batch that the norms of a network cannot be trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from m2f_cli.data.loader import Batch
from m2f_cli.errors import ConfigError
from m2f_cli.structures.targets import Target
from m2f_cli.training.loop import losses_of


def test_a_batch_norm_over_one_value_is_one_sentence():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).train()
    config, device = SimpleNamespace(precision="fp32"), torch.device("cpu")
    parts = SimpleNamespace(config=config, piloting=None, device=device, network=network, criterion=None)
    nothing = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 20, 20, dtype=torch.bool))
    with pytest.raises(ConfigError, match="1 image of 32 x 32 pixels is too little for the batch norms"):
        losses_of(parts, Batch(torch.zeros(1, 3, 32, 32), [nothing], ["a"]), torch.tensor(1.0))

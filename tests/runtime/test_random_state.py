"""What is no training leaves the global random generators as they were."""

from __future__ import annotations

import random

import numpy as np
import torch

from m2f_cli.runtime import random_state


def test_draws_inside_change_nothing_outside():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with random_state.kept():
        random.random(), np.random.rand(7), torch.manual_seed(0), torch.rand(5)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected

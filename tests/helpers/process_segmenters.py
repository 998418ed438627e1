"""Segmenters that another process can make: each name here is one without arguments."""

from __future__ import annotations

import os
import signal

from helpers.fake_segmenter import FakeSegmenter

from m2f_cli.errors import ConfigError

DEADLY = 33  # height of an image whose process is killed


class Deadly(FakeSegmenter):
    """Kills its process in the network, at an image of the height `DEADLY`."""

    def infer(self, prepared):
        if any(each.labels_HW.shape[0] == DEADLY for each in prepared):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().infer(prepared)


class Faulty(FakeSegmenter):
    """Has a bug."""

    def infer(self, prepared):
        return prepared[7]


def refused():
    raise ConfigError("The device 'cuda:7' cannot be used.")

"""Segmenters that another process can make: each name here is one without arguments."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from helpers.fake_segmenter import FakeSegmenter, scene

from m2f_cli.errors import ConfigError, M2FError
from m2f_cli.inference.stream import Job

DEADLY = 33  # height of an image whose process is killed


class Deadly(FakeSegmenter):
    """Kills its process in the network, at an image of the height `DEADLY`."""

    def infer(self, prepared):
        if any(each.labels_HW.shape[0] == DEADLY for each in prepared):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().infer(prepared)


class DyingOnce(FakeSegmenter):
    """Kills its process in the network, if no process has done that before: then there is the file `mark`."""

    def __init__(self, mark: Path):
        super().__init__()
        self.mark = mark

    def infer(self, prepared):
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().infer(prepared)


def fake_on(device):
    return FakeSegmenter()


def deadly_on(device):
    return Deadly()


def dying_once_on(mark, device):
    return DyingOnce(mark)


def refused_on(device):
    return refused()


class FullDisk(Job):
    """Cannot write what it finds."""

    def read(self, item):
        return scene(), None

    def finish(self, segmenter, kept, raw):
        return raw

    def use(self, item, results):
        raise M2FError("The disk is full.")


class Faulty(FakeSegmenter):
    """Has a bug."""

    def infer(self, prepared):
        return prepared[7]


def refused():
    raise ConfigError("The device 'cuda:7' cannot be used.")

"""Host of a `Case`: a side of `m2f bench`, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import plugins
from ..errors import ConfigError
from ..inference.base import innermost
from ..inference.compile import compile_parts
from ..inference.mask_rendering import Size
from ..runtime.allocator import keep_memory_if_possible
from ..runtime.devices import DTYPES
from ..runtime.memory import Memory
from . import machine
from .case import Case, image_size, network_size, training_size
from .flops import NOT_COUNTED, flops_of, parameters_of
from .model_under_test import fixed_size, load_subject, share
from .stages import Stages, split, synchronise

OURS = "m2f"
NO_FLOPS = ("post", "load", "train", "predict", "eval")  # work that is not one forward pass of known size


@dataclass
class TimedRun:
    """Timing of a run.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: seconds of processor time.
        other_cores: average number of cores that worked for other processes. None: unknown.
        joules: energy of the run. None: unknown.
        stages: seconds by stage, if they were watched.
    """

    seconds: float
    cpu_seconds: float
    other_cores: float | None
    joules: float | None
    stages: dict[str, float] | None = None


class Host:
    """Object in a worker process whose methods are called by name.

    Args:
        side: name of the side, `OURS` or a peer.
        folder: converted weights for a peer.
    """

    def __init__(self, case: Case, side: str, folder: Path | None):
        if case.keep_memory:
            keep_memory_if_possible()
        if case.threads is not None:
            torch.set_num_threads(case.threads)
        self.case, self.segmenter = case, load_subject(case)
        self.device = torch.device(self.segmenter.device)  # an engine may use another device than PyTorch would
        self.parameters: dict[str, int] = {}
        if side == OURS:
            self.parameters = parameters_of(self.segmenter.model)
            self.workload: Any = None
        else:
            innermost(self.segmenter).model = nn.Identity()  # a peer has its own network
            self.workload = plugins.get("peers", side, trust_code=case.trust_code)(case, self.segmenter, folder)  # type: ignore[operator]
        self.energy = machine.Energy(self.device)

    def share(self, folder: Path) -> None:
        """Write the weights for a peer."""
        share(self.segmenter, folder)

    def start(self) -> dict[str, Any]:
        """Prepare the work, do it once, and return the growth of memory and facts of the machine."""
        if self.workload is None:
            make = plugins.get("workloads", self.case.what, trust_code=self.case.trust_code)
            if self.case.compile:
                compile_parts(self.segmenter)
            self.workload = make(self.case, self.segmenter)  # type: ignore[operator]
        if self.case.compile:
            self.run()  # compiles for the timed size, so that the compiler's memory is not measured
        else:
            self.workload.touch()
        synchronise(self.device)
        memory = Memory(self.device)
        self.run()
        return {
            "memory": memory.growth(),
            "images": self.workload.images,
            "machine": machine.describe(self.device),
            "energy": self.energy.source,
        }

    def run(self, *, watched: bool = False) -> TimedRun:
        stages = Stages(self.device, live=watched)
        parts = {} if self.case.compile else self.workload.parts
        synchronise(self.device)
        busy, joules = machine.busy_seconds(), self.energy.joules()
        started, cpu = time.perf_counter(), time.process_time()
        with stages.watching(parts, self.workload.methods):
            self.workload.run(stages)
        synchronise(self.device)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        others = None if busy is None else max(0.0, (machine.busy_seconds() - busy - cpu) / seconds)
        by_stage = split(stages.seconds, seconds) if watched else None
        return TimedRun(seconds, cpu, others, self.energy.since(joules), by_stage)

    def answer(self) -> dict[str, Any]:
        return self.workload.answer()

    def describe(self) -> dict[str, Any]:
        """Return the facts of the case and the speed of a matrix product. Call it last, see `flops.flops_of`."""
        case, config, precision = self.case, self.segmenter.config, self.segmenter.precision
        sizes = self.workload.sizes or [self._size()]
        counted, why = self._flops(sizes[0][1])
        return {
            "model": {
                "name": config.name,
                "source": self.segmenter.source,
                "parameters": self.parameters,
                "weights": "random" if case.is_random else "as loaded",
            },
            "precision": precision,
            "picture": _the_only(image for image, _ in sizes),
            "network_input": _the_only(seen for _, seen in sizes),
            "sizes": sizes,
            "device": machine.device_name(self.device),
            "flops": counted,
            "flops_missing": why,
            "matmul_peak": machine.matmul_peak(self.device, DTYPES[precision]) if precision in DTYPES else None,
        }

    def _size(self) -> tuple[Size, Size]:
        """Return the sizes (height, width) of the image and of the network's input."""
        case, config = self.case, self.segmenter.config
        if case.what == "train":
            return training_size(case, config), training_size(case, config)
        return image_size(case, config), network_size(case, config, fixed_size(self.segmenter))

    def _flops(self, size: Size) -> tuple[dict[str, Any] | None, str | None]:
        """Return the FLOPs of a run by part, or None and the reason."""
        if self.case.what in NO_FLOPS:
            return None, "a run is not one forward pass of known size"
        classes, trusted = len(self.segmenter.categories), self.case.trust_code
        try:
            counted = flops_of(self.segmenter.config.model, classes, self.case.batch, size, trust_code=trusted)
        except ConfigError as error:
            return None, str(error)
        return {**counted, "not_counted": NOT_COUNTED}, None


def _the_only(sizes: Iterable[Size]) -> list[int] | None:
    """Return the size that all have, or None if there are several."""
    distinct = set(map(tuple, sizes))
    return list(distinct.pop()) if len(distinct) == 1 else None

"""Use of the stages of a stream: how many images each could do, how busy it was, and which one is the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = ("read", "prepare", "network", "post_process", "write")


@dataclass(frozen=True)
class StageUse:
    """Use of one stage.

    Attributes:
        name: one of `STAGES`.
        images_per_second: what its processes could do together if they did nothing else.
        busy: share of the time that its processes spent in it, 0 to 1.
    """

    name: str
    images_per_second: float
    busy: float


@dataclass
class Clock:
    """Sum of the seconds that images spent in each stage."""

    totals: dict[str, float] = field(default_factory=dict)
    images: int = 0

    def add(self, seconds: Mapping[str, float]) -> None:
        self.images += 1
        for name, value in seconds.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def stages(self, wall: float, processes: Mapping[str, float]) -> list[StageUse]:
        """Return the use of the stages.

        Args:
            wall: seconds from the first outcome to the last: without the start of the processes.
            processes: how many processes work on each stage at the same time.
        """
        shares = {name: self.totals[name] / processes[name] for name in STAGES if self.totals.get(name)}
        wall = max(wall, *shares.values(), 0.0)  # images that were on their way together at first
        return [StageUse(name, self.images / seconds, seconds / wall) for name, seconds in shares.items()]


def bottleneck(stages: list[StageUse]) -> str | None:
    """Return the stage that was busiest; None without stages."""
    return max(stages, key=lambda stage: stage.busy).name if stages else None

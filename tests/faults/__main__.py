"""Disturb every command again and again: `PYTHONPATH=tests python -m faults --kills 200 --seed 0`.

Prints a table: scenario, kind of fault, faults that were tried, survived, lost. Exit code 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from faults.harness import Bench, Lost, Runner, can_mount
from faults.kinds import KINDS, NEED_A_DISK
from faults.scenarios import SCENARIOS, make_given

TRIES = 8  # for a fault that comes before the run has ended


def disturb(bench: Bench, kind: str, draw: Random) -> str:
    """Let one fault of a kind happen. Returns its text.

    Raises:
        Lost: something did not survive it.
    """
    for _ in range(TRIES):
        fault = KINDS[kind](draw, bench)
        try:
            if bench.attempt(fault):
                return fault.text
        except Lost as error:
            raise Lost(f"{fault.text}: {error}") from error
    raise Lost(f"{kind}: {TRIES} runs ended before the fault")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="faults in all, shared by the scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parts of the names of scenario and fault: train/disk")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its own disks are taken away, too
    scenario_text, _, kind_text = asked.only.partition("/")
    chosen = [scenario for scenario in SCENARIOS if scenario_text in scenario.name]
    base = Path(tempfile.mkdtemp(prefix="m2f-faults-"))
    tried, lost = Counter(), Counter()
    try:
        with Runner() as runner:
            (base / "given").mkdir()
            given = make_given(base / "given", runner)
            has_disks = can_mount(given)
            kinds_of = {
                scenario: [
                    kind for kind in scenario.faults if kind_text in kind and (has_disks or kind not in NEED_A_DISK)
                ]
                for scenario in chosen
            }
            left, pairs = asked.kills, sum(map(len, kinds_of.values()))
            for scenario, kinds in kinds_of.items():
                count = round(left * len(kinds) / max(1, pairs))
                left, pairs = left - count, pairs - len(kinds)
                if not count:
                    continue
                (base / "bench").mkdir()
                bench, draw = Bench(runner, scenario, base / "bench", given), Random(f"{asked.seed} {scenario.name}")
                for turn in range(count):
                    kind = kinds[turn % len(kinds)]
                    tried[scenario.name, kind] += 1
                    try:
                        print(f"{scenario.name}: {disturb(bench, kind, draw)}: survived", flush=True)
                    except Lost as error:
                        lost[scenario.name, kind] += 1
                        print(f"{scenario.name}: LOST: {error}", flush=True)
                shutil.rmtree(base / "bench")
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print_table(tried, lost, has_disks)
    return int(bool(lost))


def print_table(tried: Counter, lost: Counter, has_disks: bool) -> None:
    print(f"\n{'scenario':36}{'fault':28}{'tried':>7}{'survived':>10}{'lost':>6}")
    for (scenario, kind), count in tried.items():
        wrong = lost[scenario, kind]
        print(f"{scenario:36}{kind.replace('_', ' '):28}{count:7}{count - wrong:10}{wrong:6}")
    print(f"{'all':64}{tried.total():7}{tried.total() - lost.total():10}{lost.total():6}")
    if not has_disks:
        print("Left out, because no disk can be mounted here: " + ", ".join(NEED_A_DISK).replace("_", " "))


if __name__ == "__main__":
    sys.exit(main())

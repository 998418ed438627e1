"""Command of the long run: every target gets its share of the inputs, and a table says how they ended."""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
import sys
from pathlib import Path

from .harness import Target, run, table


def targets() -> list[Target]:
    """Return the targets of all modules of this folder."""
    found: list[Target] = []
    for module in sorted(each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if not module.startswith(("test_", "__")):
            found += getattr(importlib.import_module(f"{__package__}.{module}"), "TARGETS", [])
    return found


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    options.add_argument("--count", type=int, default=20_000, help="inputs of all targets together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", nargs="+", default=[""], help="parts of the names of the targets to run")
    options.add_argument("--keep", type=Path, default=None, help="folder for the inputs of faults")
    given = options.parse_args()
    chosen = [target for target in targets() if any(part in target.name for part in given.only)]
    if not chosen:
        options.error(f"no target has one of {given.only} in its name")
    reports = []
    shares = sum(target.share for target in chosen)
    for target in chosen:
        reports.append(run(target, math.ceil(given.count * target.share / shares), given.seed, keep=given.keep))
        sys.stderr.write(f"{target.name}: {reports[-1].tried} inputs, {reports[-1].faults} faults\n")
    sys.stdout.write(table(reports) + "\n")
    return 1 if any(report.faults for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())

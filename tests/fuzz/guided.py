"""Coverage-guided mutation of single files with atheris, for a bounded time: python -m fuzz.guided --seconds 60.

The inputs begin with mutants of a target of this folder. Each must be read or refused with one `M2FError`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m2f_cli.errors import M2FError

from .__main__ import targets
from .harness import Target

SEEDS = 200  # first mutants of a target, with which the search begins
LARGEST = 1 << 20  # bytes of a seed
LIMITS = ("-rss_limit_mb=3072", "-timeout=10", "-print_final_stats=1")


def seeds(target: Target, folder: Path) -> Iterator[Path]:
    """Yield files that mutants of a target are, as far as they are single files."""
    mutants = target.mutants(random.Random(0), folder)
    for _, (_, path) in zip(range(SEEDS), mutants, strict=False):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST:
            yield path


def search(name: str, seconds: int, folder: Path) -> None:
    """Search in this process until the time is over, or until a fault ends the process."""
    import atheris

    with atheris.instrument_imports(include=["m2f_cli"], enable_loader_override=False):
        [target] = [each for each in targets() if each.name == name]
    corpus, scratch = folder / "corpus", folder / "scratch"
    for each in (corpus, scratch):
        each.mkdir()
    suffixes: list[str] = []
    for number, path in enumerate(seeds(target, scratch)):
        if path.suffix not in suffixes:
            suffixes.append(path.suffix)
        (corpus / str(number)).write_bytes(bytes([suffixes.index(path.suffix) % 256]) + path.read_bytes())
    if not suffixes:
        sys.exit(f"{name}: its mutants are no single files.")

    def try_one(data: bytes) -> None:
        path = scratch / f"input{suffixes[(data[0] if data else 0) % len(suffixes)]}"
        path.write_bytes(data[1:])
        try:
            target.read(path)
        except M2FError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error

    limits = (f"-max_total_time={seconds}", f"-artifact_prefix={Path.cwd()}/", *LIMITS)
    os.chdir(scratch)  # an input such as ".." must not lead to the folder of this run
    atheris.Setup([sys.argv[0], str(corpus), *limits], try_one)
    atheris.Fuzz()


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m fuzz.guided", description=__doc__)
    options.add_argument("--seconds", type=int, default=60, help="time for each target")
    options.add_argument("--only", nargs="+", default=["images", "masks"], help="names of targets")
    options.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # the folder of a child process
    given = options.parse_args()
    if given.here is not None:
        search(given.only[0], given.seconds, given.here)
        return 0
    known = {target.name for target in targets()}
    if unknown := [name for name in given.only if name not in known]:
        options.error(f"no target is named {unknown[0]!r}; there are {', '.join(sorted(known))}")
    failed = []
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            words = ["-m", "fuzz.guided", "--seconds", str(given.seconds), "--only", name, "--here", folder]
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        tried = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        sys.stdout.write(f"{name}: {tried[0] if tried else 'no'} inputs, exit code {done.returncode}\n")
        if done.returncode:
            failed.append(name)
            sys.stdout.write(done.stderr[-3000:] + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Coverage-guided mutation of files with atheris, for a bounded time: python -m fuzz.guided --seconds 60.

The inputs begin with mutants of a target of this folder: single files, or the text files of a folder, one at a time.
Each must be read or refused with one `M2FError`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m2f_cli.errors import M2FError

from .__main__ import targets
from .annotations import TABLES
from .harness import Target

SEEDS = 200  # first mutants of a target, with which the search begins
LARGEST = 1 << 20  # bytes of a seed
LIMITS = ("-rss_limit_mb=3072", "-timeout=10", "-print_final_stats=1")


def seeds(target: Target, folder: Path) -> Iterator[Path]:
    """Yield the mutants of a target; the next one may overwrite the last."""
    mutants = target.mutants(random.Random(0), folder)
    for _, (_, path) in zip(range(SEEDS), mutants, strict=False):
        if not path.is_symlink():
            yield path


def tables(folder: Path) -> list[Path]:
    """Return the text files of a folder, sorted, by which the formats of data sets differ."""
    return sorted(each for each in folder.rglob("*") if each.suffix in TABLES and each.is_file())


def inputs(target: Target, folder: Path) -> Iterator[tuple[int, bytes, Path]]:
    """Yield first inputs: number of a file, its bytes, and the path at which the target reads it.

    A mutant that is a folder is one input for each of its text files. The one with the most files is kept as the
    folder `kept`, in which one file at a time is replaced.
    """
    scratch, kept, suffixes, most = folder / "scratch", folder / "kept", [], 0
    for path in seeds(target, scratch):
        if path.is_file() and path.stat().st_size <= LARGEST:
            if path.suffix not in suffixes:
                suffixes.append(path.suffix)
            yield suffixes.index(path.suffix), path.read_bytes(), scratch / f"input{path.suffix}"
        elif path.is_dir() and (count := len(list(path.rglob("*")))) >= most:
            if count > most:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(path, kept)
                most = count
            for number, table in enumerate(tables(path)):
                yield number, table.read_bytes(), kept


def search(name: str, seconds: int, folder: Path) -> None:
    """Search in this process until the time is over, or until a fault ends the process."""
    import atheris

    with atheris.instrument_imports(include=["m2f_cli"], enable_loader_override=False):
        [target] = [each for each in targets() if each.name == name]
    corpus, kept = folder / "corpus", folder / "kept"
    for each in (corpus, folder / "scratch"):
        each.mkdir()
    paths: dict[int, Path] = {}
    for count, (number, data, path) in enumerate(inputs(target, folder)):
        paths[number] = path
        (corpus / str(count)).write_bytes(bytes([number % 256]) + data[:LARGEST])
    if not paths:
        sys.exit(f"{name}: its mutants are no files.")
    files = tables(kept) if kept.is_dir() else []
    originals = [each.read_bytes() for each in files]

    def try_one(data: bytes) -> None:
        number = (data[0] if data else 0) % (len(files) or len(paths))
        path = files[number] if files else paths[number]
        path.write_bytes(data[1:])
        try:
            target.read(kept if files else path)
        except M2FError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error
        finally:
            if files:
                path.write_bytes(originals[number])

    limits = (f"-max_total_time={seconds}", f"-artifact_prefix={Path.cwd()}/", *LIMITS)
    os.chdir(folder / "scratch")  # an input such as ".." must not lead to the folder of this run
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

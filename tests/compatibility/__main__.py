"""Try the commands in many environments and print the matrix.

    PYTHONPATH=tests python -m compatibility [--torch 2.6.0 newest] [--pythons python3.10 python3.13]
        [--extras onnx timm] [--packages wheel sdist] [--conditions plain offline] [--suite]

Without options, the conditions of `CONDITIONS` are tried with the Python that runs this. `--torch` and `--pythons` make
a fresh virtual environment for each pair, from a wheel that is built here; "newest" is what pip chooses. `--extras`
makes one environment for each extra, and one with none. `--suite` runs the whole test suite in each of them. The exit
code is 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MINUTES = 30
# A folder with a space and with letters that ASCII, Latin-1 and the code pages of Windows do not all have.
FOLDER = "a folder ö 像"
TRAIN = "train --preset tiny --init random --set train.iterations=2 --set train.batch=2 --device cpu --out run"
STEPS = (
    "--version",
    "--help",
    "doctor",
    "presets list",
    TRAIN,
    "predict image.png --model run --out out --device cpu",
    "eval --model run --out eval --limit 2",
)


class Condition(NamedTuple):
    """A way to run the commands.

    Attributes:
        environment: variables that replace those of this process; None removes one.
        terminal: what the output is: "pipe", "pty", or "closed input".
    """

    environment: Mapping[str, str | None] = {}
    terminal: str = "pipe"


CONDITIONS = {
    "plain": Condition(),
    "C locale": Condition({"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "ASCII console": Condition({"PYTHONIOENCODING": "ascii"}),
    "cp1252 console": Condition({"PYTHONIOENCODING": "cp1252"}),
    "console of 20 columns": Condition({"COLUMNS": "20"}),
    "dumb terminal": Condition({"TERM": "dumb", "NO_COLOR": "1"}),
    "a terminal": Condition({"TERM": "xterm-256color"}, "pty"),
    "closed input": Condition({}, "closed input"),
    "home that cannot be written": Condition({"HOME": "/proc/1/no-home", "XDG_CACHE_HOME": None}),
    "no home": Condition({"HOME": None, "XDG_CACHE_HOME": None}),
    "one thread": Condition({"OMP_NUM_THREADS": "1"}),
    "offline": Condition({"M2F_OFFLINE": "1"}),
}


def run(python: Path, step: str, folder: Path, condition: Condition) -> str | None:
    """Run one command and return None, or the reason of a failure."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for key, value in condition.environment.items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value
    command = [str(python), "-m", "m2f_cli", *step.split()]
    if condition.terminal == "pty":
        command = ["script", "-qec", " ".join(command), "/dev/null"]
    standard_input = None if condition.terminal == "pty" else subprocess.DEVNULL
    if condition.terminal == "closed input":
        command = ["sh", "-c", '"$@" <&-', "sh", *command]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=standard_input, capture_output=True, timeout=60 * MINUTES
        )
    except subprocess.TimeoutExpired:
        return f"m2f {step}: still running after {MINUTES} minutes"
    output = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode or "Traceback" in output or "bug in m2f" in output:
        last = output.strip().splitlines()[-1:] or ["no output"]
        return f"m2f {step}: exit code {done.returncode}: {last[0]}"
    return None


def try_all(python: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Return the first failure of each condition, or None."""
    return {name: _try(python, CONDITIONS[name]) for name in names}


def _try(python: Path, condition: Condition) -> str | None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / FOLDER
        folder.mkdir()
        shutil.copy(ROOT / "docs" / "scene.jpg", folder / "image.png")  # a JPEG by another name, as people have them
        reasons = (run(python, step, folder, condition) for step in STEPS)
        return next((reason for reason in reasons if reason), None)


# --- virtual environments ---------------------------------------------------------------------------------------------


def environment(interpreter: str, torch: str, extra: str, package: Path, folder: Path) -> Path:
    """Make a virtual environment outside of the source tree and return its Python.

    Args:
        interpreter: the Python to make it with.
        torch: a version, or "newest".
        extra: an extra of the package, or "".
        package: the wheel or sdist to install.
        folder: where to make it.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    requirement = f"{package}[{extra}]" if extra else str(package)
    pins = [] if torch == "newest" else [f"torch=={torch}"]
    subprocess.run([python, "-m", "pip", "install", "-q", *pins, requirement], check=True)
    return python


def build(kind: str, folder: Path) -> Path:
    """Build a wheel or an sdist of this tree."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
        if kind == "wheel"
        else [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder],
        cwd=ROOT,
        check=True,
    )
    return next(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def suite(python: Path) -> str | None:
    """Run the whole test suite with an environment that has the extra "test"."""
    done = subprocess.run([python, "-m", "pytest", "-q"], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode == 0 else f"pytest: {done.stdout.strip().splitlines()[-1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--torch", nargs="+", default=[], metavar="VERSION")
    parser.add_argument("--pythons", nargs="+", default=[], metavar="INTERPRETER")
    parser.add_argument("--extras", nargs="*", default=[], metavar="EXTRA")
    parser.add_argument("--packages", nargs="+", default=["wheel"], choices=["wheel", "sdist"])
    parser.add_argument("--suite", action="store_true", help="run the whole test suite in each environment")
    arguments = parser.parse_args()
    failures = 0

    def report(row: str, cells: Mapping[str, str | None]) -> None:
        nonlocal failures
        for name, reason in cells.items():
            failures += reason is not None
            print(f"| {row} | {name} | {'works' if reason is None else 'FAILS: ' + reason} |", flush=True)

    print("| environment | condition | outcome |\n|---|---|---|", flush=True)
    if not (arguments.torch or arguments.pythons or arguments.extras):
        report(f"Python {sys.version.split()[0]}", try_all(Path(sys.executable), arguments.conditions))
        return int(failures > 0)
    cells = [
        (kind, interpreter, torch, extra)
        for kind in arguments.packages
        for interpreter in arguments.pythons or [sys.executable]
        for torch in arguments.torch or ["newest"]
        for extra in (["test"] if arguments.suite else ["", *arguments.extras])
    ]
    for kind, interpreter, torch, extra in cells:
        row = f"{kind}, {Path(interpreter).name}, torch {torch}, {'extra ' + extra if extra else 'no extra'}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                package = build(kind, Path(folder) / "dist")
                python = environment(interpreter, torch, extra, package, Path(folder) / "venv")
            except (OSError, subprocess.CalledProcessError) as error:
                report(row, {"install": str(error)})
                continue
            report(row, try_all(python, arguments.conditions))
            if arguments.suite:
                report(row, {"suite": suite(python)})
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

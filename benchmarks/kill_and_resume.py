"""Kill a training again and again, resume it, and compare it with one that nobody disturbed: bit by bit.

    python benchmarks/kill_and_resume.py --kills 40

A third of the processes die at a random operation on a file of the run: that hits every write. A third dies at a random
moment, and so does a third that are real command lines, `m2f train` and then `m2f train --resume`. Each is one run:
killed once with SIGKILL before its end, gone on with as a person would, and compared when it has ended: weights,
optimiser, random numbers, best weights, and the lines of metrics.jsonl. What a checkpoint had is not to be done again.
Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from m2f_cli.config import presets as config
from m2f_cli.config.schema import Config
from m2f_cli.training import resume as state
from m2f_cli.training import run

CHANGES = (
    "train.batch=2",
    "train.eval_every=3",
    "train.checkpoint_every=2",
    "train.loss.num_points=32",
    "train.optimizer.learning_rate=0.001",
    "train.ema_decay=0.9",
    "train.schedule.warmup_iterations=0",
    "train.augment=[{name: flip, p: 0.5}, {name: crop, height: 64, width: 64, category_max_area: 1.0}]",
    "data.scenes.train=12",
    "data.scenes.val=2",
    "data.scenes.size=[64, 96]",
    "data.scenes.objects=[3, 8]",
    "test.resize.short_edge=64",
    "test.resize.max_edge=96",
)
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir")  # audit events of Python; what each touches comes first
CLOCKS = ("images_per_second", "data_share")


def settings(iterations: int) -> Config:
    return config.load("tiny", [*CHANGES, f"train.iterations={iterations}"])


def train(folder: Path, iterations: int, workers: int, count_to: Path | None = None, die_at: int | None = None) -> None:
    """In a process of its own: start or go on; die before operation `die_at`, or note how many there were."""
    done = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in OPERATIONS and os.getpid() == own and str(arguments[0]).startswith(str(folder)):
            if done == die_at:
                os.kill(own, signal.SIGKILL)
            done += 1

    own = os.getpid()
    sys.addaudithook(watch)
    torch.set_num_threads(1)
    resume = (folder / run.CONFIG).is_file()
    options = run.TrainOptions(init="random", device="cpu", workers=workers, resume=resume, keep=1)
    run.start(settings(iterations), folder, options, command=["kill_and_resume"])
    if count_to is not None:
        count_to.write_text(str(done))


def forked(*arguments: object, after: float | None = None, log: Path) -> int:
    """Run `train` in a fork of this process, which has computed nothing yet; the status as `os.waitstatus` gives it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                train(*arguments)
                code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def commanded(folder: Path, iterations: int, workers: int, *, after: float | None = None, log: Path) -> int:
    """Start or go on by a command line; the status, negative for a signal."""
    words = ["--resume"]
    if not (folder / run.CONFIG).is_file():
        changes = (*CHANGES, f"train.iterations={iterations}")
        words = ["--preset", "tiny", "--init", "random", "--keep", "1", *(w for c in changes for w in ("--set", c))]
    command = [sys.executable, "-m", "m2f_cli", "train", "--out", folder, "--device", "cpu", "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([*command, *words], stdout=file, stderr=file, env=environment)
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def kept_lines(folder: Path) -> list[str]:
    """The lines of metrics.jsonl that a checkpoint covers; their clocks tell whether a step was done again."""
    checkpoint = folder / "checkpoints" / state.RESUME
    if not checkpoint.is_file():
        return []
    done = state.read(checkpoint)["iteration"]
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
    kept = [line for line, entry in whole if entry["kind"] == "train" and entry["iteration"] < done]
    assert len(kept) == done, f"metrics.jsonl has {len(kept)} steps of {done} of the checkpoint"
    return kept


def killed(folder: Path, how: tuple[int, int], log: Path, kind: str, at: int | None, after: float | None) -> bool:
    """Start a run and kill it; False where it had ended before."""
    if kind == "command":
        status = commanded(folder, *how, after=after, log=log)
    else:
        status = forked(folder, *how, None, at, after=after, log=log)
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"The run failed by itself:\n{log.read_text()}")
    return status != 0 and not (folder / run.RESULTS).is_file()


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs that have ended."""
    found = _of_trees(*(state.read(folder / "checkpoints" / state.RESUME) for folder in (one, other)), "resume.pt")
    names = sorted(path.name for path in (one / "checkpoints").glob("*.safetensors"))
    if names != sorted(path.name for path in (other / "checkpoints").glob("*.safetensors")):
        found.append("other files of weights")
        names = []
    for name in names:
        found += _of_trees(*(load_file(folder / "checkpoints" / name) for folder in (one, other)), name)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in CLOCKS}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    found += [] if lines[0] == lines[1] else ["metrics.jsonl"]
    left = [str(path.relative_to(other)) for path in other.rglob("*") if path.name.endswith(".part")]
    return found + left


def _of_trees(one: object, other: object, where: str) -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [where]
        return [name for key in one for name in _of_trees(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [where]
        return [name for i in range(len(one)) for name in _of_trees(one[i], other[i], f"{where}/{i}")]
    return [] if one == other else [where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--operations", type=int, nargs="*", help="die before these operations, instead of random ones")
    parser.add_argument("--iterations", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, wrong = random.Random(asked.seed), 0
    base = Path(tempfile.mkdtemp(prefix="m2f-kills-"))
    how, log = (asked.iterations, asked.workers), base / "log"
    began = time.perf_counter()
    if forked(base / "whole", *how, base / "count", log=log):
        print(log.read_text())
        return 1
    seconds, operations = {"moment": time.perf_counter() - began}, int((base / "count").read_text())
    began = time.perf_counter()
    if not asked.operations:
        failed = commanded(base / "command", *how, log=log)
        if failed or differences(base / "whole", base / "command"):
            print(f"The command line trains something else.\n{log.read_text()}")
            return 1
    seconds["command"] = time.perf_counter() - began
    print(f"undisturbed: {seconds['moment']:.1f} s, {operations} operations on files", flush=True)
    for number in range(len(asked.operations or range(asked.kills))):
        kind = "operation" if asked.operations else ("operation", "moment", "command")[number % 3]
        folder, is_killed = base / f"killed-{number}", False
        while not is_killed:  # one that ended before it was killed says nothing
            shutil.rmtree(folder, ignore_errors=True)
            at = draw.randrange(operations) if kind == "operation" else None
            at = asked.operations[number] if asked.operations else at
            first = 0.4 if kind == "command" else 0.0  # a command line imports for a while
            after = None if kind == "operation" else draw.uniform(first, 1.0) * seconds[kind]
            is_killed = killed(folder, how, log, kind, at, after)
            if asked.operations and not is_killed:
                raise SystemExit(f"The run has ended before operation {at} of {operations}.")
        kept = kept_lines(folder)
        go_on = commanded if kind == "command" else forked
        problems = []
        if go_on(folder, *how, log=log):
            problems.append(f"did not go on: {log.read_text()}")
        else:
            problems += differences(base / "whole", folder)
            lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            problems += [] if {*kept} <= {*lines} else ["began anew in spite of its checkpoint"]
        wrong += bool(problems)
        text = "equal" if not problems else f"DIFFERS: {len(problems)}: {'; '.join(problems[:3])}"
        moment = f"before operation {at}" if after is None else f"after {after:.2f} s ({kind})"
        print(f"{number + 1}: killed {moment}, {len(kept)} steps in its checkpoint: {text}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    total = len(asked.operations or range(asked.kills))
    print(f"{total - wrong} of {total} bit-identical")
    shutil.rmtree(base)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

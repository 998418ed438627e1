"""Kill a training again and again, resume it, and compare it with one that nobody disturbed: bit by bit.

    python benchmarks/kill_and_resume.py --kills 40

Half of the processes die at a random moment, half at a random operation on a file of the run: that hits every write.
Each is one run: killed once with SIGKILL, gone on with as a person would, and compared when it has ended: weights,
optimiser, random numbers, best weights, and the lines of metrics.jsonl. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from m2f_cli import config
from m2f_cli.config import Config
from m2f_cli.training import run, state

CHANGES = (
    "train.batch=2", "train.eval_every=3", "train.checkpoint_every=2", "train.loss.num_points=32",
    "train.optimizer.learning_rate=0.001", "train.ema_decay=0.9", "train.schedule.warmup_iterations=0",
    "train.augment=[{name: flip, p: 0.5}, {name: crop, height: 64, width: 64, category_max_area: 1.0}]",
    "data.scenes.train=12", "data.scenes.val=2", "data.scenes.size=[64, 96]", "data.scenes.objects=[3, 8]",
    "test.resize.short_edge=64", "test.resize.max_edge=96",
)  # fmt: skip
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
    options = run.Options(init="random", device="cpu", workers=workers, resume=resume, keep=1)
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


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs that have ended."""
    found = _of_trees(*(state.read(folder / "checkpoints" / state.RESUME) for folder in (one, other)), "resume.pt")
    names = sorted(path.name for path in (one / "checkpoints").glob("*.safetensors"))
    if names != sorted(path.name for path in (other / "checkpoints").glob("*.safetensors")):
        found.append("other files of weights")
        names = []
    for name in names:
        found += _of_trees(*(load_file(folder / "checkpoints" / name) for folder in (one, other)), name)
    lines = [[{k: v for k, v in json.loads(line).items() if k not in CLOCKS}
              for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)]  # fmt: skip
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
    seconds, operations = time.perf_counter() - began, int((base / "count").read_text())
    print(f"undisturbed: {seconds:.1f} s, {operations} operations on files", flush=True)
    for number in range(len(asked.operations or range(asked.kills))):
        folder = base / f"killed-{number}"
        at, after = None, None
        if asked.operations:
            at = asked.operations[number] % operations
        elif number % 2:
            at = draw.randrange(operations)
        else:
            after = draw.random() * seconds
        status = forked(folder, *how, None, at, after=after, log=log)
        moment = f"before operation {at}" if after is None else f"after {after:.2f} s"
        existed = folder.exists() and (folder / "checkpoints" / state.RESUME).is_file()
        problems = [] if status == -signal.SIGKILL or after is not None else [f"was not killed: {log.read_text()}"]
        if forked(folder, *how, log=log):
            problems.append(f"did not go on: {log.read_text()}")
        else:
            problems += differences(base / "whole", folder)
        wrong += bool(problems)
        text = "equal" if not problems else f"DIFFERS: {len(problems)}: {'; '.join(problems[:3])}"
        print(f"{number + 1}: killed {moment} ({'with' if existed else 'without'} a checkpoint): {text}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    total = len(asked.operations or range(asked.kills))
    print(f"{total - wrong} of {total} bit-identical")
    shutil.rmtree(base)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

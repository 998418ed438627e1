"""Disturb predictions on Ray into a store: `PYTHONPATH=tests python -m faults.cluster --kills 30 --seed 0`.

A round is one prediction that meets several faults at random moments: the command itself is killed and started again,
an actor or a reading task is killed, the store is away for some seconds. Afterwards the store must hold what a run of
one process without faults gives, byte by byte, each image must be finished once, and no process may live on.

Prints a table as `python -m faults` does. Exit code 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from faults.__main__ import print_table
from faults.harness import Lost
from helpers.folders import write_image
from storage.door import Door
from storage.s3_server import s3_server, settings

from m2f_cli.data.synthetic.scenes import scene
from m2f_cli.storage import files

ROOT = Path(__file__).resolve().parents[2]
IMAGES, BROKEN = 60, 7  # number of images, and of one that is no image
FAILED = 3  # exit code of a run with an image that failed
PATIENCE = 300.0  # seconds after which a command hangs
LEAVING = 150  # looks, five a second, until the processes of a command that is gone must be gone, too
SPAN = 15.0  # seconds between two faults of a prediction, at most
ALLOWED = 5.0  # seconds that the store is away, at most
AT_WORK = 0.8  # share of the faults that come after the actors have been started
TOKEN = "M2F_FAULTS_ROUND"  # variable of the environment that all processes of a round have
SAVE = ("parquet", "label-png")
PARTS = {"actor": b"ray::MapWorker", "task": b"ray::MapBatches"}
TRAIN = ("train", "--preset", "tiny", "--init", "random", "--set", "train.iterations=1", "--val-images", "1")
KINDS = ("driver", "actor", "store", "task")


def predict(out: str, *more: str) -> tuple[str, ...]:
    return (
        *("predict", "s3://store/photos/", "--model", "model", "--device", "cpu", "--object-threshold", "0"),
        *("--save", ",".join(SAVE), "--shard-size", "16", "--out", out, *more),
    )


@dataclass
class Place:
    """A folder with a model, a store with images, and what a run of one process made of them.

    Attributes:
        folder: working folder of all commands.
        door: way to the store.
        whole: name → bytes of the results of an undisturbed run.
    """

    folder: Path
    door: Door
    whole: dict[str, bytes]

    def start(self, arguments: tuple[str, ...], token: str) -> subprocess.Popen:
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "M2F_HOME": str(self.folder / "home"), TOKEN: token}
        return subprocess.Popen(
            [sys.executable, "-m", "m2f_cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, arguments: tuple[str, ...], codes: tuple[int, ...] = (0,)) -> None:
        """Run a command undisturbed.

        Raises:
            RuntimeError: its exit code is none of `codes`.
        """
        token = uuid.uuid4().hex
        process = self.start(arguments, token)
        text, _ = process.communicate(timeout=PATIENCE)
        if process.returncode not in codes or left(token):
            raise RuntimeError(f"{arguments} does not even run undisturbed: {process.returncode}\n{text}")


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Make the store, the images and the model, and run undisturbed once in one process and once on Ray."""
    with tempfile.TemporaryDirectory(prefix="m2f-cluster-faults-") as name, s3_server() as address:
        folder, door = Path(name), Door(address)
        os.environ |= settings(door.address)
        import fsspec

        fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": door.address}).mkdir("store")
        for number in range(IMAGES):
            path = write_image(folder / "photos" / f"{number:03}.png", scene(number, 64, 96).image_HW3)
            content = b"no image" if number == BROKEN else path.read_bytes()
            files.write(f"s3://store/photos/{path.name}", content)
        found = Place(folder, door, {})
        found.run((*TRAIN, "--out", "model"))
        found.run(predict("s3://store/whole"), (FAILED,))
        found.whole = stored("s3://store/whole")
        found.run(predict("s3://store/ray", "--on", "ray"), (FAILED,))
        compare(found.whole, "s3://store/ray")
        try:
            yield found
        finally:
            door.listener.close()


# --- one round --------------------------------------------------------------------------------------------------------


def disturb(place: Place, kinds: list[str], draw: Random, number: int) -> Iterator[tuple[str, str]]:
    """Let faults happen to one prediction, one after the other, and compare at the end.

    Yields:
        The kind of each fault that happened, and its text.

    Raises:
        Lost: something did not survive.
    """
    out, token, waiting = f"s3://store/round-{number}", uuid.uuid4().hex, list(kinds)
    more: tuple[str, ...] = ("--on", "ray")
    try:
        while True:
            process = place.start(predict(out, *more), token)
            more = ("--on", "ray", "--skip-existing")
            yield from faults_of_a_run(place, process, waiting, draw, token)
            text, _ = process.communicate(timeout=PATIENCE)
            if process.returncode == -signal.SIGKILL:
                continue
            check_end(process.returncode, text)
            break
        compare(place.whole, out)
        check_journal(out)
        alive = left(token)
        if alive:
            raise Lost(f"processes live on: {alive}")
    except subprocess.TimeoutExpired as error:
        raise Lost("the command hung") from error
    finally:
        for pid in members(token):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def faults_of_a_run(
    place: Place, process: subprocess.Popen, waiting: list[str], draw: Random, token: str
) -> Iterator[tuple[str, str]]:
    """Let the faults that wait happen at random moments, until the command is killed or ends by itself."""
    while waiting:
        if draw.random() < AT_WORK:
            wait_for(token, PARTS["actor"], process)
        moment = draw.uniform(0, SPAN)
        try:
            process.wait(moment)
            return  # it was too fast; the others are not counted
        except subprocess.TimeoutExpired:
            kind = waiting.pop(0)
        at = f"after {moment:.1f} s"
        if kind == "store":
            away = draw.uniform(0.5, ALLOWED)
            place.door.shut()
            time.sleep(away)
            place.door.is_shut = False
            yield kind, f"the store is away for {away:.1f} s, {at}"
        elif kind == "driver":
            process.kill()
            yield kind, f"SIGKILL to the command {at}"
            return
        else:
            victims = wait_for(token, PARTS[kind], process)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(victims), signal.SIGKILL)
                yield kind, f"SIGKILL to the process of a {kind} {at}"


def wait_for(token: str, title: bytes, process: subprocess.Popen) -> list[int]:
    """Return the processes of a kind, as soon as there is one; none where the command ends before."""
    while process.poll() is None:
        found = [pid for pid in members(token) if title in read_of(pid, "cmdline")]
        if found:
            return found
        time.sleep(0.05)
    return []


def members(token: str) -> list[int]:
    """Return the living processes of a round, also those that have left the session of the command."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(pid for pid in pids if f"{TOKEN}={token}".encode() in read_of(pid, "environ"))


def read_of(pid: int, name: str) -> bytes:
    """Return what the kernel tells about a process; nothing for one that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def left(token: str) -> list[str]:
    """Return the processes that outlive their command by far."""
    for _ in range(LEAVING):
        if not members(token):
            break
        time.sleep(0.2)
    return [read_of(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:80] for pid in members(token)]


# --- what must hold ---------------------------------------------------------------------------------------------------


def check_end(code: int, text: str) -> None:
    if code != FAILED:
        raise Lost(f"exit code {code}, not {FAILED}:\n{text}")
    if "Traceback" in text or "bug in m2f" in text or "\nerror: " in f"\n{text}":
        raise Lost(f"an error was told:\n{text}")


def stored(out: str) -> dict[str, bytes]:
    """Return name → bytes of the results in a store, without the journal and the clocks."""
    names = [found[len(out) + 1 :] for found in files.find(out)]
    own = [name for name in names if not name.startswith(".predict/") and name != "predictions.json"]
    return {name: files.read(f"{out}/{name}") for name in own}


def compare(whole: dict[str, bytes], out: str) -> None:
    found = stored(out)
    problems = [f"missing: {name}" for name in whole.keys() - found.keys()]
    problems += [f"too much: {name}" for name in found.keys() - whole.keys()]
    problems += [f"{name} differs" for name in whole.keys() & found.keys() if whole[name] != found[name]]
    if problems:
        raise Lost("; ".join(sorted(problems)[:6]))


def check_journal(out: str) -> None:
    """Refuse an image that was finished twice, or never."""
    segments = [found for found in files.find(out) if "/.predict/" in found]
    entries = [json.loads(line)["record"] for line in b"".join(map(files.read, segments)).splitlines()[1:]]
    done = Counter(entry["name"] for entry in entries if "error" not in entry)
    failed = {entry["name"] for entry in entries if "error" in entry}
    if max(done.values()) > 1 or len(done) != IMAGES - 1 or failed != {f"{BROKEN:03}"}:
        twice = [name for name, count in done.items() if count > 1]
        raise Lost(f"{len(done)} images finished of {IMAGES - 1}, twice: {twice}, failed: {sorted(failed)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="faults in all")
    parser.add_argument("--round", type=int, default=8, help="faults of one prediction, at most")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it has started ends
    draw, tried, lost = Random(asked.seed), Counter(), Counter()
    scenario, number = "predict --on ray into a store", 0
    with place() as given:
        while tried.total() < asked.kills:
            count = min(asked.round, asked.kills - tried.total())
            kinds = draw.sample(KINDS * -(-count // len(KINDS)), count)
            happened, number = [], number + 1
            try:
                for kind, text in disturb(given, kinds, draw, number):
                    happened.append(kind)
                    tried[scenario, kind] += 1
                    print(f"round {number}: {text}", flush=True)
                print(f"round {number}: survived", flush=True)
            except Lost as error:
                lost.update((scenario, kind) for kind in happened[-1:] or ["none"])
                print(f"round {number}: LOST: {error}", flush=True)
    print_table(tried, lost, has_disks=True)
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())

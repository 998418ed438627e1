"""A command line is disturbed, started again as a person would, and compared with one that nobody disturbed.

`Scenario` says what is run, `Fault` what happens to it; `Trial` puts both together and tells what was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults.compare import contents, differences, leftovers
from faults.inject import READ_ONLY, Injection

ROOM = "room"  # the folder below which a command writes
OUT = f"{ROOM}/out"
PATIENCE = 180.0  # seconds after which a process hangs
GRACE = 5.0  # seconds after which a launcher ends the other processes of one that is lost
OTHERS = (0, 1, 3, 130, -signal.SIGTERM)  # exit codes of processes beside the one that is broken
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass(frozen=True)
class Scenario:
    """A command line, and how a person goes on with it.

    Attributes:
        name: its name in tables.
        start: arguments of m2f.
        again: arguments after a fault, tried in this order; the first that succeeds counts.
        faults: names of the faults that can happen to it, of `faults.kinds`.
        image: the file of its data that vanishes, or that a worker breaks at.
        processes: number of processes that share the work, as torchrun starts them.
        kept: returns what a finished part left in the folder and must not be done again.
        is_done_if_refused: True if a refusal because the result exists already says that nothing is left to do.
    """

    name: str
    start: tuple[str, ...]
    again: tuple[tuple[str, ...], ...]
    faults: tuple[str, ...]
    image: str = ""
    processes: int = 1
    kept: Callable[[Path], set[str]] = lambda folder: set()
    is_done_if_refused: bool = False


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once.

    Attributes:
        text: what it is, for the report.
        injection: what breaks inside of the process.
        signal: signal that is sent after `seconds`; 0 for none.
        to_group: True to send it to the whole group of processes.
        to_child: True to send it to a process that the command has started.
        seconds: see `signal`.
        process: number of the process that is broken, or gets the signal.
        is_real: True for a command line of its own instead of a fork.
        bytes_free: size of the disk; None for one that has enough.
        is_read_only: True if the folder cannot be written to.
        codes: exit codes that are right; 0 is right, too, where the run did not notice.
        explains: True if one sentence must say what is wrong.
    """

    text: str
    injection: Injection = field(default_factory=Injection)
    signal: int = 0
    to_group: bool = False
    to_child: bool = False
    seconds: float = 0.0
    process: int = 0
    is_real: bool = False
    bytes_free: int | None = None
    is_read_only: bool = False
    codes: tuple[int, ...] = KILLED
    explains: bool = False


@dataclass
class Ended:
    """How a run has ended: exit codes, output and CPU seconds. A negative code is a signal."""

    codes: list[int]
    texts: list[str]
    seconds: float = 0.0
    is_hung: bool = False

    @property
    def code(self) -> int:
        return self.codes[0]


class Runner:
    """A client of `faults.fork_server`."""

    def __enter__(self) -> Runner:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests'}"}
        for name in ("RANK", "WORLD_SIZE", "M2F_DEBUG", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        self.environment = environment
        self.temporary = tempfile.TemporaryDirectory(prefix="m2f-")  # short: sockets lie in it
        self.server = subprocess.Popen(
            [sys.executable, "-m", "faults.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.temporary.cleanup()

    def answer(self, seconds: float | None = None) -> dict | None:
        """Return the next line of the server; None where none came in time."""
        if not select.select([self.server.stdout], [], [], seconds)[0]:
            return None
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError("the server has died")
        return json.loads(line)

    def run(self, arguments: Sequence[str], here: Path, fault: Fault, processes: int = 1, counts: str = "") -> Ended:
        """Run a command line below `here`, with a fault."""
        environment = {"TMPDIR": self.temporary.name, "COLUMNS": "200"}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        if fault.is_real:
            return self.run_really(arguments, here, fault, environment)
        request = {
            "arguments": list(arguments),
            "folder": str(here),
            "watched": str(here / ROOM),
            "environment": environment,
            "injection": vars(fault.injection),
            "broken": fault.process,
            "processes": processes,
            "counts": counts,
        }
        self.server.stdin.write(json.dumps(request).encode() + b"\n")
        children = self.answer()["processes"]
        ended = None
        if fault.to_child:
            ended = self.kill_worker(children[0], fault)
        elif fault.signal:
            ended = self.answer(fault.seconds)
            if ended is None:
                send(children[fault.process], fault.signal, to_group=fault.to_group)
        if processes > 1 and (ended is not None or self.answer(PATIENCE) is not None):
            ended = self.answer(GRACE)
            if ended is None:
                for child in children:
                    send(child, signal.SIGTERM)
        ended = ended or self.answer(PATIENCE)
        is_hung = ended is None
        if is_hung:
            for child in children:
                send(child, signal.SIGKILL, to_group=True)
            ended = self.answer()
            while "codes" not in ended:
                ended = self.answer()
        return Ended(ended["codes"], ended["texts"], ended["seconds"], is_hung or bool(left_of(children)))

    def kill_worker(self, child: int, fault: Fault) -> dict | None:
        """Kill the newest process that a command has started, when there is one. Returns its end if it came before."""
        while True:
            ended = self.answer(0.05)
            if ended is not None or workers_of(child):
                break
        ended = ended or self.answer(fault.seconds)
        for worker in workers_of(child)[-1:] if ended is None else ():
            send(worker, fault.signal)
        return ended

    def run_really(self, arguments: Sequence[str], here: Path, fault: Fault, environment: dict[str, str]) -> Ended:
        command = [sys.executable, "-m", "m2f_cli", *arguments]
        process = subprocess.Popen(
            command,
            cwd=here,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(fault.seconds)
        send(process.pid, fault.signal, to_group=fault.to_group)
        text, _ = process.communicate()
        return Ended([process.returncode], [text], 0.0, bool(left_of([process.pid])))


def send(process: int, number: int, *, to_group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if to_group else os.kill)(process, number)


def left_of(sessions: Sequence[int]) -> list[int]:
    """Return processes of these sessions that outlive them by far. They are killed."""
    for _ in range(120):
        found = members(sessions)
        if not found:
            return []
        time.sleep(0.1)
    for pid in found:
        send(pid, signal.SIGKILL)
    return found


def members(sessions: Sequence[int]) -> list[int]:
    """Return the living processes of some sessions, the newest last."""
    return sorted(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if session_of(pid) in sessions)


def workers_of(child: int) -> list[int]:
    """Return the processes that a command has started, without the one that Python starts for itself."""
    found = []
    for pid in members([child]):
        with contextlib.suppress(OSError):  # it ends meanwhile
            if pid != child and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def session_of(pid: int) -> int:
    """Return the session of a living process; 0 for a dead one."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if values[0] == "Z" else int(values[3])


# --- one fault after another ------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """A run that nobody disturbed.

    Attributes:
        files: its files; see `compare.contents`.
        sizes: sizes of its files in bytes.
        operations: number of its operations on files; see `faults.inject`.
        seconds: CPU seconds that it took.
    """

    files: dict[str, object]
    sizes: list[int]
    operations: int
    seconds: float


class Lost(Exception):
    """What did not survive a fault."""


class Bench:
    """A folder for the trials of a scenario.

    Args:
        folder: an empty folder.
        given: the folder with data and model; it is copied for each trial.
    """

    def __init__(self, runner: Runner, scenario: Scenario, folder: Path, given: Path):
        self.runner, self.scenario, self.folder, self.given = runner, scenario, folder, given
        self.here = folder / "here"
        self.whole = self.undisturbed()

    @contextlib.contextmanager
    def room(self, fault: Fault) -> Iterator[Path]:
        """Yield a folder with fresh data and an empty place for results, as the fault asks for."""
        shutil.copytree(self.given, self.here, symlinks=True)
        (self.here / ROOM).mkdir()
        is_mounted = fault.bytes_free is not None or fault.is_read_only
        if is_mounted:
            mount("-t", "tmpfs", "-o", f"size={fault.bytes_free or 1 << 26}", "tmpfs", str(self.here / ROOM))
        if fault.is_read_only:
            mount("-o", "remount,ro", str(self.here / ROOM))
        try:
            yield self.here
        finally:
            if is_mounted:
                subprocess.run(["umount", "-l", self.here / ROOM], check=True)
            shutil.rmtree(self.here)

    def undisturbed(self) -> Whole:
        counts = self.folder / "operations"
        with self.room(Fault("nothing")) as here:
            ended = self.runner.run(
                self.scenario.start, here, Fault("nothing"), self.scenario.processes, counts=str(counts)
            )
            if any(ended.codes) or ended.is_hung:
                raise RuntimeError(f"{self.scenario.name} does not even run undisturbed: {ended}")
            files = contents(here / ROOM, here)
            left = leftovers(here / ROOM)
            if left:
                raise Lost(f"left behind by an undisturbed run: {left}")
            sizes = [path.stat().st_size for path in (here / ROOM).rglob("*") if path.is_file()]
            return Whole(files, sizes, int(counts.read_text()), ended.seconds)

    def attempt(self, fault: Fault) -> bool:
        """Let a fault happen, go on, and compare. Returns False where the run had ended before the fault.

        Raises:
            Lost: something did not survive.
        """
        with self.room(fault) as here:
            ended = self.runner.run(self.scenario.start, here, fault, self.scenario.processes)
            if not any(ended.codes) and (fault.to_child or not fault.explains):
                return False
            self.check_end(ended, fault)
            self.check_left(here, fault)
            self.repair(here, fault)
            kept = self.scenario.kept(here / OUT)
            self.go_on(here, ended)
            self.check_result(here, kept)
        return True

    def check_end(self, ended: Ended, fault: Fault) -> None:
        output = "\n".join(ended.texts)
        code = ended.codes[fault.process]
        if ended.is_hung:
            raise Lost(f"it hung, or a process of it lives on:\n{output}")
        if code and code not in fault.codes:
            raise Lost(f"exit code {code}, not {fault.codes}:\n{output}")
        if code and not {*ended.codes} <= {*fault.codes, *OTHERS}:
            raise Lost(f"exit codes {ended.codes}:\n{output}")
        if "Traceback" in output or "bug in m2f" in output:
            raise Lost(f"a traceback, or called a bug:\n{output}")
        lines = [line for text in ended.texts for line in text.splitlines()]
        errors = [line for line in lines if line.startswith("error: ")]
        image = os.path.basename(fault.injection.path)  # of many: the others are done
        told = errors or [line for line in lines if image and image in line and line.startswith(("failed", "warning"))]
        if fault.explains and code > 0 and code != 130 and not told:
            raise Lost(f"no sentence about the error:\n{output}")
        if len(errors) > len(ended.texts):
            raise Lost(f"several sentences about one error:\n{output}")

    def check_left(self, here: Path, fault: Fault) -> None:
        """Refuse half-written files where the process could have removed them."""
        is_dead = not fault.explains or fault.signal or fault.injection.action in ("worker", "worker-killed")
        if is_dead or fault.is_read_only or fault.injection.value in READ_ONLY:
            return
        left = [name for name in leftovers(here / ROOM) if not name.endswith(".journal")]
        if left:
            raise Lost(f"left behind after an error: {left}")

    def repair(self, here: Path, fault: Fault) -> None:
        """Give back what the fault took away."""
        for path in here.rglob("*.gone"):
            path.rename(path.with_suffix(""))
        if fault.bytes_free is not None or fault.is_read_only:
            mount("-o", f"remount,rw,size={1 << 28}", str(here / ROOM))

    def go_on(self, here: Path, ended: Ended) -> None:
        texts = []
        if self.scenario.is_done_if_refused and ended.code == 3:  # it wrote all but the image that it named
            shutil.rmtree(here / OUT, ignore_errors=True)
        for arguments in self.scenario.again:
            again = self.runner.run(arguments, here, Fault("nothing"), self.scenario.processes)
            if not any(again.codes):
                return
            if self.scenario.is_done_if_refused and again.code == 2 and "exists already" in again.texts[0]:
                return
            texts += again.texts
        raise Lost("it does not go on:\n" + "\n".join([*ended.texts, "--- again:", *texts]))

    def check_result(self, here: Path, kept: set[str]) -> None:
        problems = differences(self.whole.files, contents(here / ROOM, here))
        problems += [f"left behind: {path}" for path in leftovers(here / ROOM)]
        problems += ["done again in spite of its record"] if not kept <= self.scenario.kept(here / OUT) else []
        if problems:
            raise Lost("; ".join(problems[:6]))


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def can_mount(folder: Path) -> bool:
    """Return True if this process may mount a disk of its own."""
    command = f"mount -t tmpfs -o size=64k tmpfs '{folder}' && umount '{folder}'"
    return subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0

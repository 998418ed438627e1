"""Runs `m2f` again and again in forks of one process that has imported everything: a run takes a second, not six.

Takes a JSON line per run on stdin. Gives a line with the numbers of its processes, and one with how they ended.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from faults.inject import Injection, Injector

IMPORTED = (
    "m2f_cli.commands.train",
    "m2f_cli.commands.predict",
    "m2f_cli.commands.eval",
    "m2f_cli.commands.export",
    "m2f_cli.commands.data",
    "m2f_cli.training.run",
    "m2f_cli.inference.load",
    "m2f_cli.evaluation.setup",
    "m2f_cli.export.base",
    "m2f_cli.dataset_tools.convert.run",
    "m2f_cli.dataset_tools.prepare.run",
    "scipy.optimize",
)
PIPE = 1 << 20  # bytes of output that nobody reads before the end
CRASHED = 99


def run(request: dict, number: int) -> int:
    """Run the command line in this process, which is a fork. Returns its exit code."""
    from m2f_cli import cli

    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    if request["processes"] > 1:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(request["processes"]))
    sys.argv = ["m2f", *request["arguments"]]
    mine = Injection(**request["injection"]) if number == request["broken"] else Injection()
    injector = Injector(mine, Path(request["watched"]))
    injector.install()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = cli.run(request["arguments"], process=cli.OWN_PROCESS)
    injector.is_inside = True
    if number == 0 and request["counts"]:
        Path(request["counts"]).write_text(str(injector.operations))
    return code


def forked(request: dict, number: int) -> tuple[int, int]:
    """Return the number of a new process, and where its output can be read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    child = os.fork()
    if child:
        os.close(writer)
        os.set_blocking(reader, False)
        return child, reader
    code = CRASHED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a process that has not reached Python yet
    try:
        silent = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((silent, 0), (writer, 1), (writer, 2)):
            os.dup2(source, target)
        code = run(request, number)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def output(reader: int) -> str:
    """Return what is in a pipe, although another process may still hold its other end."""
    parts = []
    while True:
        try:
            part = os.read(reader, PIPE)
        except BlockingIOError:
            part = b""
        if not part:
            os.close(reader)
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


def tell(answer: dict, place: int) -> None:
    os.write(place, json.dumps(answer).encode() + b"\n")


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # nobody else writes to the harness
    for name in IMPORTED:
        importlib.import_module(name)
    tell({"ready": True}, answers)
    for line in sys.stdin:
        request = json.loads(line)
        children = [forked(request, number) for number in range(request["processes"])]
        tell({"processes": [child for child, _ in children]}, answers)
        ended = {}
        while len(ended) < len(children):
            child, status, usage = os.wait3(0)
            ended[child] = (os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)
            if len(ended) == 1 and len(children) > 1:
                tell({"first": child}, answers)
        codes = [ended[child][0] for child, _ in children]
        texts = [output(reader) for _, reader in children]
        tell({"codes": codes, "texts": texts, "seconds": max(seconds for _, seconds in ended.values())}, answers)


if __name__ == "__main__":
    main()

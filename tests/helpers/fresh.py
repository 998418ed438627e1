"""Programs in processes of their own that have imported PyTorch already: a fork takes a moment, that import seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Forks before PyTorch has computed anything, so that there are no threads yet. It has imported nothing of the package.
SERVER = """
import json, os, sys, traceback, types
import torch
def run(request):
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(request[name], os.O_RDWR), number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(request["code"], "<string>", "exec"), vars(main))
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            run(json.loads(line))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Fresh:
    """Runs programs as `python -c` does; see the module. Where there is no Linux, it starts Python each time."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None

    def __call__(
        self, code: str, *arguments: object, folder: Path | None = None, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Run a program to its end. `environment` is the whole one; PyTorch has read its variables before."""
        given = {
            "code": code,
            "arguments": [str(each) for each in arguments],
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ) if environment is None else environment,
        }
        if sys.platform != "linux":
            command = [sys.executable, "-c", code, *given["arguments"]]
            where = {"cwd": given["folder"], "env": given["environment"]}
            return subprocess.run(command, capture_output=True, text=True, check=False, **where)
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            returncode = self._run({**given, "stdin": os.devnull, "stdout": out.name, "stderr": err.name})
            texts = [Path(file.name).read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(["python", "-c", code], returncode, *texts)

    def _run(self, request: dict) -> int:
        if self._server is None:
            command = [sys.executable, "-c", SERVER]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return int(self._server.stdout.readline())
        except BaseException:  # the limit of a test's time: what comes later must not get this answer
            self._server.kill()
            self._server = None
            raise

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.communicate()

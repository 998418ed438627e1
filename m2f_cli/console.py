"""The terminal: results go to stdout, progress and remarks to stderr.

Rich honours NO_COLOR, and leaves colours and boxes out of files and pipes. Names of files and classes may come from
strangers: control characters are shown as escapes, and so are letters that the encoding does not have.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .errors import ConfigError
from .runtime.text import json_text, visible_line, visible_text

SCHEMA_VERSION = 1
MOST_NAME = 40  # columns of a terminal that the first column of a table may claim
SHOWN_FAILURES = 5
NORMAL, QUIET, VERBOSE = "normal", "quiet", "verbose"
_level = NORMAL


def _console(*, stderr: bool, always: bool = False) -> Console:
    """Return a new console. It is new each time, because a console reads sys.stdout and NO_COLOR when it is created.

    Args:
        always: print also after --quiet.
    """
    escape_unknown_letters()
    is_quiet = _level == QUIET and not always
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=is_quiet)


def set_level(level: str) -> None:
    """Choose how much is printed: `NORMAL`, `QUIET` (errors only) or `VERBOSE` (more about each step and error).

    Raises:
        ConfigError: both --quiet and --verbose were given.
    """
    global _level
    if {_level, level} == {QUIET, VERBOSE}:
        raise ConfigError("--quiet and --verbose exclude each other.", hint="Leave one of them out.")
    _level = level


def is_verbose() -> bool:
    return _level == VERBOSE


def debug(text: str) -> None:
    """Print a remark to stderr after --verbose."""
    if is_verbose():
        note(text)


class LogNotes(logging.Handler):
    """Handler of log records that prints their messages as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def show_log() -> None:
    """Print what m2f logs as remarks."""
    logger = logging.getLogger("m2f_cli")
    if not any(isinstance(handler, LogNotes) for handler in logger.handlers):
        logger.addHandler(LogNotes())


def open_missing_streams() -> None:
    """Open stdin, stdout and stderr to nowhere, as far as the process was started without them.

    The next file would get their numbers otherwise, and libraries would print into it. `sys.stdin` stays None, which
    says that no list comes.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
            os.set_inheritable(descriptor, True)
            if name != "stdin":
                setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))


def escape_unknown_letters() -> None:
    """Let stdout and stderr write letters that their encoding lacks as escapes instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def stderr() -> Console:
    """Return the console for progress."""
    return _console(stderr=True)


def out(text: str) -> None:
    """Print a line of the result to stdout."""
    _console(stderr=False).print(visible_line(text))


def out_text(text: str) -> None:
    """Print several lines of the result to stdout."""
    _console(stderr=False).print(visible_text(text))


def next_steps(*commands: Sequence[str | Path]) -> None:
    """Print what can be typed next to stdout, ready to be copied."""
    out(f"Next: {'   or   '.join(shlex.join(map(str, words)) for words in commands)}")


def note(text: str) -> None:
    """Print a remark to stderr."""
    _console(stderr=True).print(visible_line(text), style="dim")


def warn(text: str) -> None:
    """Print a warning to stderr."""
    _console(stderr=True).print(f"warning: {visible_line(text)}", style="yellow")


def fail(text: str) -> None:
    """Print the error that ends the program to stderr, in one line."""
    text = " ".join(line.strip() for line in text.split("\n") if line.strip())
    _console(stderr=True, always=True).print(f"error: {visible_line(text)}", style="red")


def show_traceback() -> None:
    """Print the traceback of the error that is being handled to stderr."""
    _console(stderr=True, always=True).print(visible_text(traceback.format_exc()), end="")


def emit_json(tree: dict[str, Any]) -> None:
    """Print a JSON object that begins with "schema_version" to stdout. It is valid in any encoding."""
    console, whole = _console(stderr=False, always=True), {"schema_version": SCHEMA_VERSION, **tree}
    is_unicode = console.encoding.lower().startswith("utf")
    console.out(json_text(whole, indent=2) if is_unicode else json.dumps(whole, indent=2))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table to stdout, with numbers to the right. In a pipe, cells are separated by tabs, for cut and awk."""
    console = _console(stderr=False)
    if console.quiet:
        return
    texts = [["" if cell is None else visible_line(str(cell)) for cell in row] for row in rows]
    columns = [visible_line(column) for column in columns]
    if not console.is_terminal:
        for row in [columns, *texts]:
            console.file.write("\t".join(row) + "\n")  # Rich would turn tabs into spaces
        return
    table = Table(
        title=visible_line(title),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for i, column in enumerate(columns):
        numeric = bool(texts) and all(_is_number(row[i]) for row in texts if row[i])
        # The first column names the row, so it is not folded.
        is_name = i == 0 and all(len(row[0]) <= MOST_NAME for row in texts)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=is_name)
    for row in texts:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def show_failures(failures: Sequence[str], file: Path | str) -> None:
    """Print the first failures to stdout, after --quiet to stderr, and the file that lists all of them."""
    say = fail if _level == QUIET else out
    for text in failures[:SHOWN_FAILURES]:
        say(f"failed: {text}")
    if len(failures) > SHOWN_FAILURES:
        say(f"… and {len(failures) - SHOWN_FAILURES} more, all in {file}")


@contextmanager
def progress(
    description: str, total: int | None = None, unit: str = "images"
) -> Iterator[Callable[[str | None], None]]:
    """Show a progress bar with a rate on stderr.

    Yields:
        `advance(message)`, which counts one step and shows a message, if any, above the bar. Without a terminal there
        is no bar, only the messages.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else f"– {unit}/s")

    console = _console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(visible_line(description), total=total)

        def advance(message: str | None = None) -> None:
            if message:
                console.print(f"warning: {visible_line(message)}", style="yellow")
            bar.advance(task)

        yield advance


class StageList:
    """Sequence of progress bars on stderr. Each begins when its total is known."""

    def __enter__(self) -> StageList:
        self._bar = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, description: str, total: int) -> None:
        self._bar.close()
        self.advance = self._bar.enter_context(progress(description, total))


@contextmanager
def downloads() -> Iterator[Callable[[Any], None]]:
    """Show progress bars on stderr for files that are being fetched. Without a terminal, print one line per file.

    Yields:
        A function that takes records with `name`, `received` and `total`, in bytes.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = _console(stderr=True)
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def show(record: Any) -> None:
            if record.name not in tasks:
                tasks[record.name] = bar.add_task(f"Fetching {visible_line(record.name)}", total=record.total)
                if not console.is_terminal:
                    note(f"fetching {record.name}")
            bar.update(tasks[record.name], completed=record.received, total=record.total)

        yield show


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""The command line. Commands come from the table in plugins.py and are imported on use. Errors become one line."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import console, plugins
from .commands import help_page, words
from .commands.options import Quiet, Threads, Verbose
from .errors import M2FError, is_out_of_memory, unknown_name
from .runtime.network import go_offline, is_offline
from .runtime.text import visible_line
from .runtime.threads import choose_threads
from .version import __version__

INTERRUPTED = 130
OWN_PROCESS = "own"  # the process runs this command alone
TYPED = "m2f.typed"  # key of all words that were typed, in `meta` of a context


class Commands(TyperGroup):
    """Group of the commands in plugins.py. Another package adds one with an entry point of the group m2f.commands."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        ctx.meta[TYPED] = list(args)
        with _usage_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:
        """Run a command."""
        with _usage_errors(ctx):
            return super().invoke(ctx)

    def get_params(self, ctx: typer.Context) -> list[Any]:
        """Return the options before the command. They are few, so that one panel holds them."""
        params = super().get_params(ctx)
        for parameter in params:
            parameter.rich_help_panel = None
        return params

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(plugins.table("commands"))

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        known = plugins.table("commands")
        if cmd_name.startswith("-"):
            return super().get_command(ctx, cmd_name)
        if cmd_name not in known and ctx.resilient_parsing:  # while a shell completes a line
            return None
        if cmd_name not in known:
            raise unknown_name("command", cmd_name, known)
        return mount(cmd_name, known[cmd_name])


@contextmanager
def _usage_errors(ctx: typer.Context) -> Iterator[None]:
    """Answer an unknown option with what to type. What Typer says of others gets visible characters only."""
    try:
        yield
    except typer.BadParameter.__base__ as error:  # a usage error
        if hasattr(error, "possibilities") and hasattr(error, "option_name") and error.ctx is not None:
            command, path, typed = error.ctx.command, error.ctx.command_path, ctx.meta[TYPED]
            raise words.unknown_option(command, path, error.option_name, typed) from error
        if "unexpected extra argument" in error.message and error.ctx is not None:
            answer = words.assignment(error.ctx.command, error.ctx.command_path, ctx.meta[TYPED])
            if answer is not None:
                raise answer from error
        error.message = visible_line(error.message)
        raise


def mount(name: str, target: str) -> Any:
    """Return the command behind "module:object": a function with a signature for Typer, or a Typer app."""
    try:
        command = plugins.load(target)
    except Exception as error:  # one command that cannot be imported must not break the others
        return _broken(name, error)
    shell = _shell()
    if isinstance(command, typer.Typer):
        shell.add_typer(command, name=name, rich_help_panel=command.rich_help_panel)
    else:
        shell.command(name)(command)
    return help_page.complete(typer.main.get_group(shell).commands[name], f"m2f {name}")


def _shell() -> typer.Typer:
    return typer.Typer(add_completion=False)


def _broken(name: str, error: Exception) -> Any:
    shell = _shell()
    reason = f"cannot be loaded: {str(error).rstrip('.') or type(error).__name__}."
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}

    @shell.command(name, help=reason[0].upper() + reason[1:], context_settings=anything, add_help_option=False)
    def report() -> None:
        raise M2FError(f"The command {name!r} {reason}") from error

    return typer.main.get_group(shell).commands[name]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out(f"m2f {__version__}")
        raise typer.Exit()


app = typer.Typer(
    name="m2f",
    cls=Commands,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Universal image segmentation with Mask2Former, MaskFormer and MP-Former.",
    epilog="m2f COMMAND --help says more. Errors: exit code 2 usage, 3 data, 4 weights, 5 export, 1 anything else.",
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact nothing: use only what is on this machine. As M2F_OFFLINE=1.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    threads: Threads = None,
    keep_memory: Annotated[
        bool | None,
        typer.Option(
            "--keep-memory/--no-keep-memory",
            help="Keep freed memory (glibc): faster on a CPU, with more memory. By default for predict and eval.",
        ),
    ] = None,
) -> None:
    if offline or (is_offline() and context.obj == OWN_PROCESS):
        go_offline()
    if context.invoked_subcommand is None:
        from .commands.start import show

        return show()
    choose_threads(threads)
    if keep_memory or (keep_memory is None and context.obj == OWN_PROCESS):
        from .runtime import allocator  # only here: half a millisecond of ctypes

        if keep_memory:
            allocator.keep_memory()
        elif allocator.is_kept_by(context.invoked_subcommand):
            allocator.keep_memory_if_possible()


def main() -> None:
    """Run the command line and exit with the code of errors.py. M2F_DEBUG=1 adds the traceback to an error."""
    console.open_missing_streams()
    sys.exit(run(process=OWN_PROCESS))


def run(arguments: list[str] | None = None, process: str | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        process: `OWN_PROCESS` lets commands choose settings of the whole process.
    """
    console.escape_unknown_letters()  # Typer prints help and errors of its own
    console.set_level(console.NORMAL)
    console.show_log()
    start = time.monotonic()
    try:
        return _run(arguments, process)
    finally:
        console.debug(f"m2f {__version__}, Python {platform.python_version()}: {_cost(time.monotonic() - start)}")
        console.set_level(console.NORMAL)  # for what else this process prints


def _cost(seconds: float) -> str:
    """Return the time of this command, and the most memory that the process has had."""
    if sys.platform == "win32":
        return f"{seconds:.1f} s"
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return f"{seconds:.1f} s, at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB"


def _run(arguments: list[str] | None, process: str | None) -> int:
    try:
        app(arguments, prog_name="m2f", obj=process)
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else int(end.code is not None))
    except KeyboardInterrupt:
        return _flushed(INTERRUPTED)
    except BrokenPipeError:
        return _silenced()
    except M2FError as error:
        _explain(str(error), is_expected=True)
        return error.exit_code
    except OSError as error:  # an error of a file or device that no caller has described
        _explain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", is_expected=True)
        return 1
    except Exception as error:
        if is_out_of_memory(error):
            said = str(error).strip().split("\n")[0].rstrip(".")
            _explain(f"Not enough memory{f': {said}' if said else ''}.", is_expected=True)
            return 1
        _explain(f"{type(error).__name__}: {error}", is_expected=False)  # a bug
        return 1
    return 0


def _explain(text: str, *, is_expected: bool) -> None:
    if console.is_verbose() or os.environ.get("M2F_DEBUG", "") not in ("", "0"):
        console.show_traceback()
    elif not is_expected:
        text = f"{text.rstrip('.')}. This is a bug in m2f or in a package that it uses: set M2F_DEBUG=1 to see where."
    console.fail(text)


def _flushed(code: int) -> int:
    if code == INTERRUPTED:
        console.note("interrupted")
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _silenced()
    return code


def _silenced() -> int:
    """Return success after the reader of the output has gone, as `head` does. Python then prints nothing at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0

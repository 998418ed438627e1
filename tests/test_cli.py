"""The command line as a whole: light, lazy, and errors in one line with the right exit code."""

from __future__ import annotations

import os
import pickle
import platform
import re
import subprocess
import sys
import types
from importlib.metadata import version

import pytest
import typer

from m2f_cli import cli, console, errors, plugins

HEAVY = ("torch", "numpy", "pydantic", "PIL", "transformers")


@pytest.fixture
def commands(monkeypatch):
    """`commands(name=function_or_app, …)` puts commands into the table; a string is a target as it stands."""

    def put(**objects):
        module = types.ModuleType("fake_commands")
        table = {}
        for name, value in objects.items():
            setattr(module, name, value)
            table[name] = value if isinstance(value, str) else f"fake_commands:{name}"
        monkeypatch.setitem(sys.modules, "fake_commands", module)
        monkeypatch.setattr(plugins, "table", lambda group: {"commands": table}[group])

    return put


def raising(error):
    def command() -> None:
        """Fails."""
        raise error

    return command


def m2f(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "m2f_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from m2f_cli.cli import run; code = run(['--help']); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert all(f" {name} " in done.stdout for name in plugins.names("commands"))
    assert "Segment images." in done.stdout


def test_version_is_that_of_the_package():
    done = m2f("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"m2f {version('m2f-cli')}\n", "")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_keep_memory_keeps_what_was_freed():
    """256 MiB, freed, leave the process unless it was told to keep them; its children are told too. Some commands are
    told unless somebody says otherwise."""
    code = (
        "import ctypes, os; from pathlib import Path; from m2f_cli.cli import run\n"
        "from m2f_cli import plugins; plugins.table = lambda group: {'here': '__main__:here'}\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20\n"
        "def here() -> None:\n"
        "    libc, before = ctypes.CDLL(None), resident()\n"
        "    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "    block = libc.malloc(256 << 20); ctypes.memset(ctypes.c_void_p(block), 1, 256 << 20); libc.free(block)\n"
        "    print(resident() - before, os.environ.get('MALLOC_MMAP_THRESHOLD_'))\n"
        "from m2f_cli.runtime import allocator; allocator.KEEPING = KEPT\n"
        "run(WORDS, process=PROCESS)"
    )

    def keeps(words: list[str], kept: tuple[str, ...] = (), process: str | None = cli.OWN_PROCESS) -> bool:
        values = {"KEPT": kept, "WORDS": words, "PROCESS": process}
        line = re.sub("KEPT|WORDS|PROCESS", lambda name: repr(values[name[0]]), code)
        grown, setting = subprocess.check_output([sys.executable, "-c", line], text=True).split()
        assert (int(grown) > 200, int(grown) < 50) == ((True, False) if setting == str(1 << 30) else (False, True))
        return setting != "None"

    assert keeps(["--keep-memory", "here"]) and not keeps(["here"])
    assert keeps(["here"], kept=("here",)) and not keeps(["--no-keep-memory", "here"], kept=("here",))
    assert not keeps(["here"], kept=("here",), process=None)  # somebody else's process is left alone


def test_keep_memory_says_where_it_means_nothing(monkeypatch, capsys):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert cli.run(["--keep-memory", "presets", "list"]) == errors.ConfigError.exit_code
    assert "is a setting of glibc" in capsys.readouterr().err


def test_a_command_is_imported_only_when_it_is_called(commands, capsys):
    def hello() -> None:
        """Greets."""
        console.out("hello [red]you[/red] :smile:")

    commands(hello=hello, broken="no_such_module_at_all:x")
    assert cli.run(["hello"]) == 0
    assert capsys.readouterr() == ("hello [red]you[/red] :smile:\n", "")
    assert "no_such_module_at_all" not in sys.modules


def test_a_sub_app_is_mounted_under_its_name(commands, capsys):
    app = typer.Typer(help="Many things.")
    app.command("one")(lambda: console.out("one"))
    app.command("two")(lambda: console.out("two"))
    commands(things=app)
    assert cli.run(["things", "two"]) == 0
    assert capsys.readouterr().out == "two\n"
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "things" in text and "Many things." in text


def test_a_command_that_cannot_be_imported_is_reported_and_not_fatal(commands, capsys):
    commands(good=raising(errors.DataError("x")), bad="no_such_module_at_all:x", typo="fake_commands:nothing")
    assert cli.run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Fails." in text and "Cannot be loaded" in text
    assert cli.run(["bad", "--any", "thing"]) == 1
    assert "error: The command 'bad' cannot be loaded: " in capsys.readouterr().err
    assert cli.run(["typo", "--help"]) == 1
    assert "no object 'nothing'" in capsys.readouterr().err
    assert cli.run(["good"]) == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.M2FError("a"), 1),
        (errors.ConfigError("a"), 2),
        (errors.DataError("a"), 3),
        (errors.WeightsError("a"), 4),
        (errors.ExportError("a"), 5),
        (errors.MissingDependency("timm", "timm"), 1),
        (KeyboardInterrupt(), 130),
        (ValueError("a"), 1),
        (typer.Exit(7), 7),
    ],
)
def test_each_kind_of_error_has_its_exit_code(commands, capsys, error, code):
    commands(fails=raising(error))
    assert cli.run(["fails"]) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err


def test_errors_of_other_processes_arrive_whole():
    for error in (errors.DataError("a", hint="b"), errors.MissingDependency("timm", "A backbone", "timm")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.hint) == (type(error), str(error), error.hint)


def test_an_error_is_one_line_and_a_bug_says_how_to_see_more(commands, capsys, monkeypatch):
    monkeypatch.delenv("M2F_DEBUG", raising=False)
    commands(fails=raising(errors.DataError("The file [a].jpg\nis bad.", hint="Copy it.")), bug=raising(KeyError("x")))
    cli.run(["fails"])
    assert capsys.readouterr().err == "error: The file [a].jpg is bad. Copy it.\n"
    cli.run(["bug"])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: KeyError: 'x'.") and "M2F_DEBUG=1" in message
    monkeypatch.setenv("M2F_DEBUG", "1")
    cli.run(["bug"])
    assert "Traceback" in capsys.readouterr().err


def test_a_mistyped_command_and_a_wrong_option():
    done = m2f("predct")
    assert done.returncode == 2 and "Did you mean predict" in done.stderr and done.stdout == ""
    done = m2f("predict", "--no-such-option")
    assert done.returncode == 2 and "--no-such-option" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m m2f_cli predict --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_emit_json_and_tables(capsys):
    console.emit_json({"name": "[b]ü[/b]"})
    assert capsys.readouterr().out == '{\n  "schema_version": 1,\n  "name": "[b]ü[/b]"\n}\n'
    console.show_table("Title", ["name", "PQ"], [["[a]" * 60, 51.9], ["b", None]])
    assert capsys.readouterr().out == f"name\tPQ\n{'[a]' * 60}\t51.9\nb\t\n"


def test_progress_without_a_terminal_shows_only_messages(capsys):
    with console.progress("Working", 2) as advance:
        advance(None)
        advance("one is broken")
    assert capsys.readouterr() == ("", "warning: one is broken\n")


def test_downloads_without_a_terminal_show_one_line_per_file(capsys):
    with console.downloads() as show:
        for received in (1, 2):
            show(types.SimpleNamespace(name="a.pkl", received=received, total=2))
    assert capsys.readouterr() == ("", "fetching a.pkl\n")


@pytest.mark.parametrize("line", ["--quiet presets show tiny", "presets show tiny --quiet"])
def test_quiet_may_stand_before_or_after_the_command(line, capsys):
    assert cli.run(line.split()) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.run(["presets", "show", "tiny"]) == 0 and capsys.readouterr().out  # the next command is not quiet


@pytest.mark.parametrize("line", ["--verbose fails", "fails --verbose"])
def test_verbose_says_where_an_error_comes_from_and_what_it_took(line, commands, capsys):
    commands(fails=raising(errors.DataError("a")))
    assert cli.run(line.split()) == 3
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" in err and "error: a\n" in err
    assert re.search(r"^m2f \S+, Python 3\.\d+\.\d+: \d+\.\d s", err, re.MULTILINE)


def test_a_quiet_command_still_says_what_is_wrong(commands, capsys):
    commands(fails=raising(errors.DataError("a")))
    assert cli.run(["fails", "--quiet"]) == 3
    assert capsys.readouterr() == ("", "error: a\n")


@pytest.mark.parametrize("error", [MemoryError("of 3 GiB"), RuntimeError("can't allocate memory: of 3 GiB.\nMore.")])
def test_too_little_memory_is_no_bug(monkeypatch, capsys, error):
    def ends(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", ends)
    assert cli.run([]) == 1
    err = capsys.readouterr().err
    assert "Not enough memory: " in err and "of 3 GiB." in err and "bug" not in err and "More" not in err

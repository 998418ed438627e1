"""What is printed: on consoles of any encoding, with names of any letters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m2f_cli import console
from m2f_cli.errors import ConfigError

EVIL = "e\x1b]0;t\x07\x1b[31m \x9b1m \u202e \u2028 \udcff [red]x[/] 图 é"
ENCODINGS = ["ascii", "cp1252", "utf-8", "utf-16", "gbk"]


@pytest.fixture
def streams(monkeypatch):
    """`streams("ascii")` puts consoles of that encoding in place, and gives functions for what they got."""

    def replace(encoding):
        made = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", made[0])
        monkeypatch.setattr(sys, "stderr", made[1])

        def content():
            for stream in made:
                stream.flush()
            return [stream.buffer.getvalue().decode(encoding) for stream in made]

        return content

    return replace


@pytest.mark.skipif(os.name != "posix", reason="a shell closes them")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_that_is_started_without_streams(closed, tmp_path):
    command = f'exec "{sys.executable}" -m m2f_cli presets copy tiny "{tmp_path}/x.yaml" {closed}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stderr == b"" and (tmp_path / "x.yaml").is_file()
    assert (done.stdout == b"") == (" >&-" in f" {closed}")


@pytest.mark.skipif(os.name != "posix", reason="numbers of open files")
def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path):
    code = "import os, sys; from m2f_cli import console; console.open_missing_streams(); "
    code += "open(sys.argv[1], 'w').write(str(os.open(os.devnull, 0)))"
    subprocess.run(
        ["bash", "-c", f'exec "{sys.executable}" -c "$0" "$1" <&- >&- 2>&-', code, f"{tmp_path}/number"],
        timeout=120,
        check=True,
    )
    assert int((tmp_path / "number").read_text()) > 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_name_ends_the_program_or_drives_the_terminal(streams, encoding):
    content = streams(encoding)
    for show in (console.out, console.out_text, console.note, console.warn, console.fail):
        show(EVIL)
    console.show_table(EVIL, [EVIL, "b"], [[EVIL, 1], [f"{EVIL}\n\t", None]])
    with console.progress(EVIL, 2) as advance:
        advance(EVIL)
    with console.downloads() as show:
        show(type("Record", (), {"name": EVIL, "received": 1, "total": 2}))
    for text in content():
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\udcff"}
        assert "\\x1b]0;t\\x07" in text and "\\udcff" in text and "[red]x[/]" in text
    out, _ = content()
    assert [len(line.split("\t")) for line in out.splitlines()[2:]] == [2, 2, 2]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_valid_on_any_console(streams, encoding):
    content = streams(encoding)
    console.emit_json({"name": EVIL})
    text = content()[0]
    assert json.loads(text)["name"] == EVIL
    assert json.loads(text if "utf" in encoding else text.encode("ascii"))["schema_version"] == console.SCHEMA_VERSION


def test_an_error_is_one_line_and_keeps_the_spaces_of_names(streams):
    content = streams("utf-8")
    console.fail("There is no  file 'a  b'.\nHint.")
    assert content()[1] == "error: There is no  file 'a  b'. Hint.\n"


def test_several_lines_stay_several(streams):
    content = streams("utf-8")
    console.out_text("a:\n\tb")
    console.out("a\nb")
    assert content()[0].splitlines()[-1] == "a\\nb" and len(content()[0].splitlines()) == 3


NEXT = "---next---"
EACH = f"""
import sys
from m2f_cli import cli
words, line, codes = sys.argv[1:], [], []
for word in words:
    if word != {NEXT!r}:
        line.append(word)
        continue
    sys.argv[1:], line = line, []
    try:
        cli.main()
    except SystemExit as end:
        codes.append(end.code)
    for stream in (sys.stdout, sys.stderr):
        print({NEXT!r}, file=stream, flush=True)
print(*codes)
"""


@pytest.mark.parametrize(
    "setting",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_help_and_errors_on_consoles_of_few_letters(setting):
    """All in one process, each as `python -m m2f_cli` has it."""
    lines = [
        ["--help"],
        ["predict", "--help"],
        ["no-such\u2026"],
        ["predict", "--no-such"],
        ["predict", "gone-图-\udcff.png"],
        ["presets", "list"],
    ]
    words = [word for line in lines for word in (*line, NEXT)]
    done = subprocess.run(
        [sys.executable, "-c", EACH, *map(os.fsencode, words)],
        capture_output=True,
        env={**os.environ, **setting},
        timeout=120,
    )
    assert done.returncode == 0 and b"bug in m2f" not in done.stderr and b"Traceback" not in done.stderr
    texts, errors = (stream.split(NEXT.encode()) for stream in (done.stdout, done.stderr))
    assert len(texts) == len(errors) == len(lines) + 1
    for text, error in zip(texts, errors[:-1], strict=False):
        assert text.strip() or error.strip()
    assert [int(code) for code in texts[-1].split()] == [0, 0, 2, 2, 3, 0]


# --- how much is printed ----------------------------------------------------------------------------------------------


@pytest.fixture
def level():
    yield console.set_level
    console.set_level(console.NORMAL)


def test_quiet_leaves_errors_and_json(level, capsys):
    level(console.QUIET)
    for say in (console.out, console.out_text, console.note, console.warn, console.debug):
        say("something")
    console.show_table("Title", ["name"], [["a"]])
    with console.progress("Working", 2) as advance, console.downloads():
        advance("one is broken")
    assert capsys.readouterr() == ("", "")
    console.fail("it broke")
    console.show_failures(["a.jpg"], Path("predictions.json"))
    console.emit_json({})
    assert capsys.readouterr() == ('{\n  "schema_version": 1\n}\n', "error: it broke\nerror: failed: a.jpg\n")


def test_verbose_adds_remarks(level, capsys):
    console.debug("more")
    level(console.VERBOSE)
    console.debug("and more")
    assert capsys.readouterr() == ("", "and more\n")


def test_quiet_and_verbose_exclude_each_other(level):
    level(console.QUIET)
    level(console.QUIET)
    with pytest.raises(ConfigError, match="exclude each other"):
        level(console.VERBOSE)

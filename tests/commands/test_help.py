"""Every help text is a plain phrase that says what a command, option or argument does."""

from __future__ import annotations

import re
import shlex
import sys
import types

import pytest
import typer
from helpers.command_tree import COMMANDS

from m2f_cli import cli, console, plugins
from m2f_cli.commands import help_page
from m2f_cli.commands import options as opt
from m2f_cli.errors import ConfigError

RIDDLE = re.compile(r"(Of|Its|Whether|What|How|Whom)\b")


def texts(command, path):
    """Each help text below a command, with where it stands."""
    yield path, command.help
    for parameter in command.params:
        yield f"{path} {parameter.opts[0]}", parameter.help
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from texts(command.get_command(context, name), f"{path} {name}")


HELP = dict(texts(typer.main.get_command(cli.app), "m2f"))


def test_the_whole_tree_is_looked_at():
    assert {"m2f --threads", "m2f data check", "m2f data split --seed", "m2f predict source"} <= HELP.keys()


@pytest.mark.parametrize("place", HELP)
def test_a_help_text_is_a_plain_phrase(place):
    text = HELP[place] or ""
    assert text.endswith("."), f"a help text is missing or has no full stop: {text!r}"
    assert not RIDDLE.match(text), f"say what it does: {text!r}"
    assert "picture" not in text.lower(), f"say image: {text!r}"


@pytest.mark.parametrize(
    "command", ["train --val-{}", "export --model x --{}", "bench --what forward --{}", "demo --{}"]
)
def test_options_named_after_images_understand_their_former_names_without_showing_them(command, capsys):
    [name, *_] = command.split()
    assert cli.run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "images" in shown and "--pictures" not in shown and "--val-pictures" not in shown
    for word in ("images", "pictures"):
        assert cli.run([*command.format(word).split()]) == 2
        assert "requires an argument" in capsys.readouterr().err


def test_a_work_of_bench_has_a_former_name(monkeypatch):
    from m2f_cli.benchmark import interleaved

    seen = []

    def bench(case, *_):
        seen.append(case.what)
        raise ConfigError("enough")

    monkeypatch.setattr(interleaved, "bench", bench)
    for what in ("image", "picture"):
        assert cli.run(["bench", "--preset", "tiny", "--what", what]) == 2
    assert seen == ["picture", "picture"]


# --- panels -----------------------------------------------------------------------------------------------------------


def options(path):
    command = COMMANDS[path]
    shown = command.get_params(typer.Context(command, info_name=path))
    return [each for each in shown if each.param_type_name == "option" and not each.hidden]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_has_a_panel_and_a_few_are_most_used(path):
    panels = {each.opts[0]: each.rich_help_panel for each in options(path)}
    assert [name for name, panel in panels.items() if panel not in opt.PANELS] == []
    assert sum(panel == opt.MOST_USED for panel in panels.values()) <= 5
    assert {"--help", "--quiet", "--verbose"} <= panels.keys()


@pytest.mark.parametrize("path", COMMANDS)
def test_what_is_said_to_be_used_most_exists(path):
    page = help_page.page_of(COMMANDS[path])
    assert [each.name for each in options(path) if each.rich_help_panel == opt.MOST_USED] == list(page.most_used)


def test_panels_stand_in_their_order_after_the_arguments(capsys):
    assert cli.run(["predict", "--help"]) == 0
    titles = re.findall(r"─ ([A-Z][a-z ]+) ─", capsys.readouterr().out)
    assert titles == ["Arguments", *(panel for panel in opt.PANELS if panel != opt.DATA)]


def test_the_commands_stand_in_groups(capsys):
    assert cli.run(["--help"]) == 0
    assert re.findall(r"─ ([A-Z][a-z ]+) ─", capsys.readouterr().out) == ["Options", "Segment", "Train", "Data", "More"]


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMANDS)
def test_two_examples_are_understood(path, only_parsed, capsys):
    lines = help_page.page_of(COMMANDS[path]).examples
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(path) and cli.run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert len(only_parsed) == 2


@pytest.mark.parametrize("path", ["m2f predict", "m2f data convert"])
def test_examples_are_lines_to_copy(path, capsys):
    assert cli.run([*path.split()[1:], "--help"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert set(help_page.page_of(COMMANDS[path]).examples) <= set(shown)


def test_a_command_from_elsewhere_needs_no_help_page(monkeypatch, capsys):
    module = types.ModuleType("elsewhere")
    module.greet = lambda name="you": console.out(f"hello {name}")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setattr(plugins, "table", lambda group: {"greet": "elsewhere:greet"})
    assert cli.run(["greet", "--help"]) == 0 and "Examples" not in capsys.readouterr().out
    assert cli.run(["greet"]) == 0 and capsys.readouterr().out == "hello you\n"
    assert cli.run(["greet", "--quiet"]) == 0 and capsys.readouterr().out == ""

"""Every help text is a plain phrase that says what a command, option or argument does."""

from __future__ import annotations

import re

import pytest
import typer

from m2f_cli import cli
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

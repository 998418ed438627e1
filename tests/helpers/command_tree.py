"""Every command of m2f, as Typer sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from m2f_cli import cli


def commands(command: Any, path: str = "m2f") -> Iterator[tuple[str, Any]]:
    """Yield each command that is no group, with the words that call it."""
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from commands(command.get_command(context, name), f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(cli.app)))

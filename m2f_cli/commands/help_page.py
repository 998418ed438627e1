"""Parts that every command has beside its own options: panels, examples, --quiet, --verbose, words of other tools."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from . import options as opt
from . import words

Function = TypeVar("Function", bound=Callable[..., Any])
NAME = "help_page"  # attribute of a function that is a command


@dataclass(frozen=True)
class HelpPage:
    """Parts of a help page beside the options.

    Attributes:
        examples: lines that can be typed as they are.
        most_used: names of the parameters in the first panel, five at most.
        panel: the group of the command in `m2f --help`.
    """

    examples: tuple[str, ...] = ()
    most_used: tuple[str, ...] = ()
    panel: str = "More"


def help_page(*examples: str, most_used: tuple[str, ...] = (), panel: str = "More") -> Callable[[Function], Function]:
    """Return a decorator that gives a command its help page."""

    def mark(function: Function) -> Function:
        setattr(function, NAME, HelpPage(examples, most_used, panel))
        return function

    return mark


def page_of(command: Any) -> HelpPage:
    """Return the help page of a command; an empty one for a command that states none."""
    return getattr(command.callback, NAME, HelpPage())


def complete(command: Any, path: str) -> Any:
    """Give a command, and those below it, all that this module stands for.

    Args:
        command: a command of Typer that is going to be run, or whose help is going to be shown.
        path: the words that call it, such as "m2f data check".
    """
    for name, inner in getattr(command, "commands", {}).items():
        complete(inner, f"{path} {name}")
    if hasattr(command, "commands"):
        return command
    page = page_of(command)
    command.rich_help_panel = page.panel
    if page.examples:
        command.epilog = "\n\n".join(["Examples:", *(line.replace("[", r"\[") for line in page.examples)])
    own = {name for parameter in command.params for name in parameter.opts}
    command.params += [parameter for parameter in _everywhere() if own.isdisjoint(parameter.opts)]
    for parameter in command.params:
        if parameter.name in page.most_used:
            parameter.rich_help_panel = opt.MOST_USED
    command.params.sort(key=functools.partial(_place, page))
    help_option = command.get_help_option(typer.Context(command, info_name=path))
    if help_option is not None:
        help_option.rich_help_panel = opt.ADVANCED
    command.context_settings = {**command.context_settings, "token_normalize_func": words.translator(command)}
    return command


def _place(page: HelpPage, parameter: Any) -> tuple[int, int]:
    """Return the place of a parameter: its panel, and its place there. Arguments are first, panels of others last."""
    if parameter.param_type_name == "argument":
        return -1, 0
    panel = parameter.rich_help_panel
    if panel == opt.MOST_USED:
        return 0, page.most_used.index(parameter.name)
    return opt.PANELS.index(panel) if panel in opt.PANELS else len(opt.PANELS), 0


@functools.cache
def _everywhere() -> list[Any]:
    """Return the options that every command has."""
    shell = typer.Typer(add_completion=False)

    @shell.command()
    def _(quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None: ...

    return list(typer.main.get_command(shell).params)

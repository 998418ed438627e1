"""Tables in Markdown, and what stands in their cells: links and types in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from typing_extensions import NotRequired

from m2f_cli.config.schema import Component


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown. Outside of code, bars and angle brackets in cells are escaped."""
    lines = [list(map(_cell, line)) for line in (head, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    parts = re.split(r"(`[^`]*`|\]\(<[^>]*>\))", " ".join(text.split()))
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def linked(text: str) -> str:
    """Return a text in which citations of the published behaviour are links."""
    link = r"[published behaviour](<../methods/published-behaviour.md\1>)"
    return re.sub(r"docs/methods/published-behaviour\.md(#[\w-]+)?", link, text)


NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false", type(None): "null", Any: "any value"}


def type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is Annotated:
        return type_name(inner[0]) + bounds(list(inner[1:]))
    if origin in (NotRequired, getattr(NotRequired, "__origin__", None)) and inner:
        return type_name(inner[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"list of {type_name(inner[0])}" if inner[-1] is Ellipsis else f"{len(inner)} x {type_name(inner[0])}"
    if origin is list:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return f"{type_name(inner[0])} → {type_name(inner[1])}"
    if inner:
        return " or ".join(map(type_name, inner))
    return "part: `name` and its options" if annotation is Component else "section"


def bounds(metadata: Iterable[Any]) -> str:
    """Return the bounds of a number in words, such as ", at least 1", from annotations of pydantic."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found: dict[str, float] = {}
    for each in metadata:
        nested = getattr(each, "metadata", None) or [each]
        found |= {key: getattr(item, key) for item in nested for key in words if hasattr(item, key)}
    shown = [f"{words[key]} {value:g}" for key, value in found.items() if abs(value) < 2**31]
    return f" ({', '.join(shown)})" if shown else ""

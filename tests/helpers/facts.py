"""The published numbers as docs/methods/published-behaviour.md tells them, and the makers' lists of classes."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods" / "published-behaviour.md"
CLASS_LISTS = Path(__file__).resolve().parents[1] / "class_lists"


def section(number: str, until: str | None = None) -> str:
    """The text of a section such as "1.2", without its heading; `until` cuts it off at a heading inside."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^### {re.escape(number)} .*\n((?:.*\n)*?)(?=<a id=\"\d|\Z)", text, re.MULTILINE)
    assert found, f"{PAGE.name} has no section {number}"
    return found[1][: found[1].index(f"\n#### {until}")] if until else found[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a markdown text, each a list of {column: cell}."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
            rows = []
    return found


def rows(text: str) -> list[dict[str, str]]:
    """The rows of all tables of a markdown text."""
    return [row for table in tables(text) for row in table]


def class_list(name: str) -> list[list[str]]:
    """The rows of a list of classes, which was read from the makers' own files."""
    lines = (CLASS_LISTS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]

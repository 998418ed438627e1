"""Docstrings begin as the field writes them, and the rooms that are checked strictly have no type error."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "m2f_cli").rglob("*.py"))
# Words that begin a fragment, a question or a riddle, not a verb in the imperative or a noun phrase.
FRAGMENTS = re.compile(
    "What|Whether|How|Of|Its|Whom|Who|Where|When|Why|Is|Are|Does|Do|Which|As|In|For|By|With|Without|So|That|This|These|"
    "Those|It|If|Such|From|To|On|At"
)
ARTICLES = {"The", "A", "An", "Some", "One", "Each", "Every", "All", "No", "None", "Not", "Same", "True", "False"}


def docstrings(path: Path) -> list[tuple[int, str, bool]]:
    """Return line, docstring and whether it is that of a function, for each docstring of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                is_property = any("property" in ast.dump(each) for each in getattr(node, "decorator_list", ()))
                found.append((getattr(node, "lineno", 1), text, isinstance(node, ast.FunctionDef) and not is_property))
    return found


def is_odd(text: str, is_function: bool) -> bool:
    """Tell whether the first word is none that begins a docstring. Those of functions are verbs in the imperative."""
    word = re.match(r"[^\s.,:;]+", text)[0]
    return FRAGMENTS.fullmatch(word) is not None or (
        is_function and (word in ARTICLES or not re.fullmatch(r"[A-Z][a-z-]+", word))
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun_phrase(path):
    odd = [
        f"{line}: {text.splitlines()[0]}" for line, text, is_function in docstrings(path) if is_odd(text, is_function)
    ]
    assert not odd


def test_riddles_are_recognised():
    for text in ("Whether it is.", "Of views.", "What stands here", "How many", "The mask of", "(H, W) of a map."):
        assert is_odd(text, True)
    assert not is_odd("Return the mask.", True) and not is_odd("The mask of an object.", False)


@pytest.mark.skipif(
    tuple(map(int, version("torch").split(".")[:2])) < (2, 14),
    reason="mypy reads PyTorch's own annotations, which change",
)
def test_types_are_right_where_they_are_checked_strictly(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

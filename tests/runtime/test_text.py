"""Text from data is shown, never obeyed; JSON holds any name and gives it back."""

from __future__ import annotations

import json
import os

import pytest

from m2f_cli.runtime.files import write_json
from m2f_cli.runtime.text import json_text, visible_line, visible_text

NAMES = [
    "plain",
    "ümläut 图 😀",
    "latin-\udcfc\udcff",
    "esc\x1b[31m\x07",
    "a\nb\tc\r",
    "c1\x9b31m",
    "sep\u2028\u2029\x85",
    "turn\u202e\u2066\u200f",
    "del\x7f",
    "\ud800",
    "\x00",
    "back\\slash",
    '"quoted"',
]


@pytest.mark.parametrize("name", NAMES)
def test_json_gives_any_name_back(tmp_path, name):
    for tree in (name, {name: [name]}):
        text = json_text(tree)
        assert json.loads(text.encode("utf-8").decode("utf-8")) == tree
        assert len(text.splitlines()) == 1
    write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"file": name}


def test_json_keeps_letters_and_form():
    assert json_text({"name": "ümläut 图"}) == '{"name": "ümläut 图"}'
    assert json_text({"a": [1, 2]}, separators=(",", ":")) == '{"a":[1,2]}'
    assert json_text({"a": 1}, indent=2) == json.dumps({"a": 1}, indent=2)


@pytest.mark.parametrize(
    ("text", "line", "lines"),
    [
        ("plain ümläut 图 😀 \\n", "plain ümläut 图 😀 \\n", "plain ümläut 图 😀 \\n"),
        ("a\nb\tc", "a\\nb\\tc", "a\nb\tc"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07", "a\\x1b[31mb\\x07"),
        ("a\rb\x9bc\x7f", "a\\rb\\x9bc\\x7f", "a\\rb\\x9bc\\x7f"),
        ("\u202egnp\u2028", "\\u202egnp\\u2028", "\\u202egnp\\u2028"),
        (os.fsdecode(b"\xff"), "\\udcff", "\\udcff"),
        ("a\u200fb\u200ec\u061c", "a\\u200fb\\u200ec\\u061c", "a\\u200fb\\u200ec\\u061c"),
        ("a\u200bb\ufeff\xad", "a\\u200bb\\ufeff\\xad", "a\\u200bb\\ufeff\\xad"),
        ("a\U000e0041", "a\\U000e0041", "a\\U000e0041"),
        ("\u0646\u200c\u0645 \u0915\u094d\u200d\u0937", *["\u0646\u200c\u0645 \u0915\u094d\u200d\u0937"] * 2),
    ],
)
def test_what_cannot_be_seen_is_shown_as_escapes(text, line, lines):
    assert visible_line(text) == line and visible_text(text) == lines


def test_json_on_a_terminal_drives_nothing():
    text = json_text({"name": "a\x1b[31m\x7f\x9b1m\u202e\u200f"})
    assert text.isprintable()

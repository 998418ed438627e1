"""Make text from data safe for a terminal and for JSON."""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters, which a terminal obeys.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
# Marks that turn the direction of writing, separators of lines that are not "\n", and halves of characters: by those
# Python stands for bytes of a file's name that are not UTF-8.
_TURNS = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# Letters without a shape, by which different names look alike. Those that join letters in some scripts stay.
_SHAPELESS = "\u00ad\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_UNSEEN = _CONTROLS + _TURNS + _SHAPELESS
_NOT_IN_TEXT = re.compile(f"[{_UNSEEN}]")
_NOT_IN_LINE = re.compile(f"[{_UNSEEN}\t\n]")
_NOT_IN_JSON = re.compile(f"[\x7f-\x9f{_TURNS}]")  # what json.dumps itself does not escape
_MOST_DIGITS = 30
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def is_whole_number(text: str) -> bool:
    """Tell whether text is a whole number from 0 on, of so few digits that Python reads it at once."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def visible_line(text: str) -> str:
    """Return text as one line of visible characters. Control characters and the like become escapes."""
    return _NOT_IN_LINE.sub(_escape, text)


def visible_text(text: str) -> str:
    """Return text of several lines as visible characters and tabs; see `visible_line`."""
    return _NOT_IN_TEXT.sub(_escape, text)


def json_text(tree: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """Return JSON that any encoding of Unicode can hold and that reads back unchanged.

    Letters stay as they are. Halves of characters, which no file can hold, become escapes. So do characters that some
    readers take for the end of a line, and those that a terminal obeys.
    """
    text = json.dumps(tree, ensure_ascii=False, indent=indent, separators=separators)
    if text.isascii() and "\x7f" not in text:
        return text  # long lists of numbers are not searched
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escape(found: re.Match[str]) -> str:
    letter, code = found.group(), ord(found.group())
    if letter in _SHORT:
        return _SHORT[letter]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"

"""Make text from data safe for a terminal and for JSON."""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters (a terminal obeys them), marks that turn the direction of writing, separators of lines that are not
# "\n", and halves of characters: by those Python stands for bytes of a file's name that are not UTF-8.
_UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_IN_TEXT = re.compile(f"[{_UNSEEN}]")
_NOT_IN_LINE = re.compile(f"[{_UNSEEN}\t\n]")
_NOT_IN_JSON = re.compile("[\x80-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def visible_line(text: str) -> str:
    """Return text as one line of visible characters. Control characters and the like become escapes."""
    return _NOT_IN_LINE.sub(_escape, text)


def visible_text(text: str) -> str:
    """Return text of several lines as visible characters and tabs; see `visible_line`."""
    return _NOT_IN_TEXT.sub(_escape, text)


def json_text(tree: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """Return JSON that any encoding of Unicode can hold and that reads back unchanged.

    Letters stay as they are. Halves of characters, which no file can hold, become escapes. So do characters that some
    readers take for the end of a line.
    """
    text = json.dumps(tree, ensure_ascii=False, indent=indent, separators=separators)
    if text.isascii():
        return text  # long lists of numbers are not searched
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escape(found: re.Match[str]) -> str:
    letter = found.group()
    return _SHORT.get(letter) or (f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}")

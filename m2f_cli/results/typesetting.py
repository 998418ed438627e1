"""Text in any script on images: each character in a font that has it, from m2f itself or from this machine.

m2f brings one font, with the letters of Latin, Greek and Cyrillic. Other characters are looked for once in the fonts of
this machine. Those that no font has become escapes, and a log record says which font would help.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from ..runtime.text import visible_line
from .colors import Color

OWN = Path(__file__).parent / "fonts" / "Roboto-Medium.ttf"
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MOST_FILES = 20_000  # fonts of a machine that are looked at
LONGEST = 200  # characters; a longer name would fit no image
CAP_HEIGHT = 0.71  # of the size, for `OWN`
SAMPLE_SIZE = 20
SYMBOL = "symbol"  # in place of a script
NO_CHARACTER = "\U0010ffff"  # no font has it, so that fonts draw what they draw for missing characters
# Styles that are taken only where no plain font has a character; the last is a font of empty boxes.
_STYLES = re.compile("italic|oblique|thin|light|black|heavy|mono|serif|condensed|narrow|math|fallback|lastresort", re.I)
_NO_SHAPE = re.compile("[\ufe00-\ufe0f]")  # choices between shapes of the character before them
_JOINERS = re.compile("[\u200c\u200d]")

log = logging.getLogger(__name__)
_font_of: dict[str, Path | None] = {}  # character → a font that has it; None: no font of this machine
reported: set[str] = set()  # scripts without a font


@dataclass(frozen=True)
class SetText:
    """Text that is ready to be drawn.

    Attributes:
        mask: coverage of the pixels, 0 to 255 ("L"). Nothing reaches beyond it, however high accents are piled.
        width: advance in pixels.
        baseline: distance of the baseline from the top of the mask in pixels.
    """

    mask: Image.Image
    width: int
    baseline: int

    def draw(self, image: Image.Image, left: int, baseline: int, ink: Color) -> None:
        """Draw the text on an image."""
        image.paste(ink, (left, baseline - self.baseline), self.mask)


@functools.lru_cache(maxsize=256)  # names and scores come again on each image
def set_text(text: str, size: int, most: float | None = None) -> SetText:
    """Return text of one line in a font size (pixels).

    Characters without a shape become escapes. Text that is wider than `most` pixels ends in "…".
    """
    line = _drawable(text[:LONGEST])
    if most is None or _width(line, size) <= most:
        return _rendered(line, size)
    fits, too_long = 0, len(line)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _width(f"{line[:middle].rstrip()}…", size) <= most:
            fits = middle
        else:
            too_long = middle
    cut = f"{line[:fits].rstrip()}…"
    return _rendered(cut if fits and _width(cut, size) <= most else "", size)


def look_for(text: str) -> None:
    """Look for fonts that have the characters of a text, once for each character, and log which are nowhere."""
    new = {char for char in _normal(text) if char not in _font_of and not char.isspace()}
    if not new:
        return
    for path in (OWN, *machine_fonts()):
        found = _characters(path, new)
        _font_of.update(dict.fromkeys(found, path))
        new -= found
        if not new:
            return
    _font_of.update(dict.fromkeys(new))
    for char in sorted(new):
        if (script := _script(char)) not in reported:
            reported.add(script)
            log.warning("No font has %r (%s): names show its code instead. %s", char, script, _advice(script))


def is_drawable(text: str) -> bool:
    """Tell whether any character of a text has a font."""
    look_for(text)
    return any(_font_of.get(char) is not None for char in _normal(text))


@functools.cache
def machine_fonts() -> tuple[Path, ...]:
    """Return the font files of this machine, plain styles first."""
    files = islice((path for folder in _folders() for path in _files(folder)), MOST_FILES)
    return tuple(sorted(files, key=lambda path: (len(set(_STYLES.findall(path.stem))), path.name, path)))


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        own = os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"), Path(own, "Microsoft", "Windows", "Fonts")]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"
    return [Path(own, "fonts"), home / ".fonts", *(Path(folder, "fonts") for folder in shared.split(":") if folder)]


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        paths = (Path(parent, name) for name in names if name.lower().endswith(SUFFIXES))
        yield from (path for path in paths if path.is_file())


@functools.lru_cache(maxsize=64)
def _kept_font(path: Path, size: int, is_simple: bool) -> ImageFont.FreeTypeFont:
    """Return a font to draw with; the quick layout serves letters that stand one after the other."""
    is_joined = _joins_letters() and not is_simple
    layout = ImageFont.Layout.RAQM if is_joined else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), size, layout_engine=layout)


@functools.cache
def _joins_letters() -> bool:
    """Tell whether Pillow can join letters, and set those that run to the left."""
    return bool(features.check("raqm"))


def _characters(path: Path, wanted: set[str]) -> set[str]:
    """Return the characters that a font draws otherwise than one that it lacks; none if it cannot be read."""
    try:
        font = ImageFont.truetype(str(path), SAMPLE_SIZE, layout_engine=ImageFont.Layout.BASIC)
        missing = _shape(font, NO_CHARACTER)
        return {char for char in wanted if _shape(font, char) != missing}
    except (OSError, ValueError):  # a damaged font, or one of bitmaps in other sizes
        return set()


def _shape(font: ImageFont.FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


def _normal(text: str) -> str:
    """Return a name as it is drawn, before fonts are known: one line of visible characters."""
    line = unicodedata.normalize("NFC", visible_line(text))
    line = _NO_SHAPE.sub("", line)
    return line if _joins_letters() else _JOINERS.sub("", line)


def _drawable(text: str) -> str:
    """Return a name with escapes in place of characters that no font has."""
    look_for(text)
    line = _normal(text)
    return "".join(char if _is_known(char) else char.encode("unicode_escape").decode() for char in line)


def _is_known(char: str) -> bool:
    return char.isspace() or _JOINERS.match(char) is not None or _font_of.get(char) is not None


def _rendered(line: str, size: int) -> SetText:
    pieces = [(_kept_font(path, size, text.isascii()), text) for path, text in _runs(line)]
    widths = [font.getlength(text) for font, text in pieces]
    width, baseline = ceil(sum(widths)), round(1.1 * size)
    mask = Image.new("L", (max(1, width), baseline + ceil(0.4 * size)))
    draw = ImageDraw.Draw(mask)
    for (font, text), left in zip(pieces, accumulate(widths, initial=0.0), strict=False):
        draw.text((left, baseline), text, font=font, fill=255, anchor="ls")
    return SetText(mask, width, baseline)


def _width(line: str, size: int) -> float:
    return sum(_kept_font(path, size, text.isascii()).getlength(text) for path, text in _runs(line))


def _runs(line: str) -> list[tuple[Path, str]]:
    """Cut a line into the longest texts of one font. Spaces, joiners and accents stay in the text before them."""
    runs: list[tuple[Path, str]] = []
    for char in line:
        goes_on = char.isspace() or _JOINERS.match(char) or unicodedata.combining(char)
        path = runs[-1][0] if goes_on and runs else _font_of.get(char) or OWN
        if runs and runs[-1][0] == path:
            runs[-1] = (path, runs[-1][1] + char)
        else:
            runs.append((path, char))
    return runs


def _script(char: str) -> str:
    """Return the script of a character, the first word of its name in Unicode; "symbol" for emoji and the like."""
    if unicodedata.category(char) == "So":
        return SYMBOL
    return unicodedata.name(char, "UNNAMED").partition(" ")[0]


def _advice(script: str) -> str:
    if script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "BOPOMOFO"):
        return "Install the font Noto Sans CJK (Debian: fonts-noto-cjk)."
    if script == SYMBOL:
        return "Install the font Symbola (Debian: fonts-symbola)."
    if script == "UNNAMED":
        return "Rename the class."
    return f"Install Noto Sans {script.title()}, or another font with it (Debian: fonts-noto-core)."

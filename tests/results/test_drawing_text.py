"""Text on images in any script: each character in a font that has it, and never an empty box."""

from __future__ import annotations

import logging
import shutil
import sys

import numpy as np
import pytest
from helpers.fake_segmenter import panoptic, scene, scene_labels

from m2f_cli.results import typesetting
from m2f_cli.results.draw_options import DrawOptions
from m2f_cli.results.drawing import shown_names
from m2f_cli.results.typesetting import is_drawable, look_for, set_text
from m2f_cli.structures.categories import Category

NOWHERE = [chr(0x10FF00 + i) for i in range(64)]  # for private use: no font has them


def pixels(text, size=20, **options):
    return np.asarray(set_text(text, size, **options).mask)


def same(one, other):
    return one.shape == other.shape and np.array_equal(one, other)


@pytest.mark.parametrize("name", ["person", "Zażółć gęślą jaźń", "Ελληνικά", "Кошка", "Tiếng Việt", "Ærø", "× …"])
def test_the_own_font_has_latin_greek_and_cyrillic(name, monkeypatch):
    monkeypatch.setattr(typesetting, "machine_fonts", lambda: ())
    look_for(name)
    assert all(is_drawable(char) for char in name if not char.isspace())
    missing = pixels("\\u1234")
    assert pixels(name).any() and not same(pixels(name), missing)


def test_a_character_that_no_font_has_is_shown_as_its_code(caplog, monkeypatch):
    monkeypatch.setattr(typesetting, "machine_fonts", lambda: ())
    with caplog.at_level(logging.WARNING, logger="m2f_cli"):
        assert same(pixels(f"a{NOWHERE[0]}b"), pixels("a\\U0010ff00b"))
        pixels(f"c{NOWHERE[0]}"), pixels(f"d{NOWHERE[1]}")
    assert len(caplog.messages) == 1, "said once"
    assert not is_drawable("".join(NOWHERE[:4]))


def test_the_log_says_which_font_would_help(caplog, monkeypatch):
    monkeypatch.setattr(typesetting, "machine_fonts", lambda: ())
    monkeypatch.setattr(typesetting, "reported", set())  # other tests have asked for Chinese
    with caplog.at_level(logging.WARNING, logger="m2f_cli"):
        look_for("\u1200\u1201 and \u3400\u3401 and \U0001f697\U0001f642")  # Ethiopic, rare Chinese, and emoji
    assert [message.partition("Install ")[2].partition(" (")[0] for message in caplog.messages] == [
        "Noto Sans Ethiopic, or another font with it",
        "the font Noto Sans CJK",
        "the font Symbola",
    ]


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="fonts of this machine lie in other folders")
def test_fonts_of_the_machine_are_found_and_broken_ones_are_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "share" / "fonts" / "truetype"
    folder.mkdir(parents=True)
    shutil.copy(typesetting.OWN, folder / "Zebra-Regular.ttf")
    (folder / "Broken.ttf").write_bytes(b"no font")
    (folder / "A-Italic.otf").write_bytes(b"")
    (folder / "folder.ttf").mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(typesetting, "OWN", folder / "Broken.ttf")
    typesetting.machine_fonts.cache_clear()
    try:
        assert [path.name for path in typesetting.machine_fonts()] == [
            "Broken.ttf",
            "Zebra-Regular.ttf",
            "A-Italic.otf",
        ]
        assert is_drawable("\u052f"), "a letter that nothing else in the tests draws"
    finally:
        typesetting.machine_fonts.cache_clear()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\u202eevil", "\\u202eevil"),
        ("two\nlines\tand\x00", "two\\nlines\\tand\\x00"),
        ("half \ud800", "half \\ud800"),
        ("cafe\u0301", "caf\u00e9"),
        ("star\ufe0f", "star"),
    ],
)
def test_characters_without_a_shape_are_shown_as_escapes(name, shown):
    assert same(pixels(name), pixels(shown))


def test_a_text_that_is_too_wide_ends_in_dots():
    text = "averylongname"
    fitting = [n for n in range(1, len(text)) if set_text(f"{text[:n]}…", 20).width <= 80]
    assert set_text(text, 20).width > 80
    assert same(pixels(text, most=80), pixels(f"{text[: max(fitting)]}…"))
    assert set_text(text, 20, 3).width == 0
    assert set_text("", 20).width == 0


def test_piled_accents_do_not_leave_their_text():
    assert pixels("e" + "\u0301" * 150).shape[0] == pixels("e").shape[0]


def test_a_name_without_any_drawable_character_becomes_the_number_of_its_class(monkeypatch):
    monkeypatch.setattr(typesetting, "machine_fonts", lambda: ())
    names = ("".join(NOWHERE[:3]), "person", f"a {NOWHERE[0]}", "", "  ")
    categories = tuple(Category(10 * i, name, True, (9, 9, 9)) for i, name in enumerate(names))
    assert shown_names(range(5), categories) == {0: "class 0", 1: "person", 2: names[2], 3: "class 30", 4: "class 40"}


def test_scripts_that_run_to_the_left_are_drawn(monkeypatch):
    result = panoptic(scene_labels(500, 500))
    sky, *others = result.categories
    latin = np.asarray(result.plot(scene(500, 500), DrawOptions(parts="labels")))
    result.categories = (Category(sky.id, "\u05e2\u05d1\u05e8\u05d9\u05ea", False, sky.color), *others)
    assert not np.array_equal(np.asarray(result.plot(scene(500, 500), DrawOptions(parts="labels"))), latin)

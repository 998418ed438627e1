"""SOURCE…: which images, in which order, under which names."""

from __future__ import annotations

import io
import os
import sys

import pytest

from m2f_cli.errors import DataError
from m2f_cli.inference.sources import RUN_MARK, expand


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.jpg", "day/a.jpg", "day/night/z.WebP", ".git/x.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def names(*sources, **options):
    return [source.name for source in expand(sources, **options)]


def test_a_folder_is_searched_in_a_stable_order(tree):
    assert names(tree) == ["a", "b", "day/a", "day/night/z"]
    assert [source.path for source in expand([tree])][1] == tree / "b.PNG"


def test_stems_never_meet(tree):
    (tree / "a.png").touch()
    (tree / "A.jpeg").touch()
    found = names(tree)
    assert len({name.casefold() for name in found}) == len(found) == 6
    assert names("in/a.jpg", "in/day/a.jpg", "in/a.png") == ["a", "day/a", "a_png"]


def test_folders_that_are_called_as_results_of_other_images(tree):
    for name in ("a.png/in.jpg", "a.png/in.tif", "b.json/day/in.jpg", "day/a.jpg.png/in.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert names("in/a.jpg", tree / "b.PNG", tree) == [
        "a",
        "b",
        "a.png_in",
        "a.png_in-2",
        "b.json_day_in",
        "day/a",
        "day/a.jpg.png/in",
        "day/night/z",
    ]
    assert names("in/a.png", "in/b.json", "in/a.jpg")[0] == "in"
    (tree / "z").mkdir()
    for name in ("z/x.png/in.jpg", "z/x.tif"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    assert names("in/z/*/*.jpg", "in/z") == ["x.png/in", "x_tif"]


def test_equal_folders_below_two_sources(tree, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").touch()
    assert names("in/a.jpg", "other") == ["a", "other/a"]


def test_the_same_file_is_done_once(tree):
    assert names("in/a.jpg", "./in/a.jpg", str(tree / "a.jpg"), "in") == ["a", "b", "day/a", "day/night/z"]


def test_globs_keep_the_folders_below_their_fixed_part(tree):
    assert names("in/*.jpg") == ["a"]
    assert names("in/**/*.*") == ["a", "b", "day/a", "day/night/z"]
    assert names("in/*/*.jpg") == ["day/a"]


def test_brackets_in_a_real_name_are_no_glob(tree):
    (tree / "a[1].jpg").touch()
    assert names("in/a[1].jpg") == ["a[1]"]


def test_paths_on_stdin(tree):
    lines = ["in/a.jpg\n", "\n", "in/day\n", "in/gone.jpg\n"]
    assert names("-", stdin=lines) == ["a", "day/a", "night/z", "gone"]


def test_the_stream_is_lazy(tree):
    def endless():
        while True:
            yield "in/a.jpg"

    assert next(expand(["-"], stdin=endless())).name == "a"


def test_results_of_an_earlier_run_are_no_images(tree):
    (tree / "runs" / "overlay").mkdir(parents=True)
    (tree / "runs" / "overlay" / "a.jpg").touch()
    assert "runs/overlay/a" in names(tree)
    (tree / "runs" / RUN_MARK).touch()
    assert "runs/overlay/a" not in names(tree)
    assert names(tree / "runs") == ["overlay/a"]


def test_a_link_that_leads_back_ends(tree):
    (tree / "day" / "loop").symlink_to(tree, target_is_directory=True)
    assert names(tree) == ["a", "b", "day/a", "day/night/z"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.jpg", "There is no file or folder 'gone.jpg'"),
        ("0", "camera"),
        ("ftp://x.org/a.jpg", "scheme that is not read"),
        ("file:///etc/passwd", "address of a local file"),
        ("in/*.bmp", "matches nothing"),
        ("in/\0*.bmp", "matches nothing"),
        ("in/\0*.tar", "matches nothing"),
        ("in/*.txt", "none of them an image"),
        ("clip.MP4", "is a video"),
        ("empty", r"No images in empty.*1 video.*\.avif"),
    ],
)
def test_what_cannot_be_read_is_said(tree, tmp_path, source, message):
    (tmp_path / "clip.MP4").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "clip.mov").touch()
    with pytest.raises(DataError, match=message):
        names(source)


class Stdin(io.TextIOWrapper):
    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="ascii")


def test_a_list_on_stdin_is_names_of_files(tree, monkeypatch):
    odd = os.fsencode(tree) + b"/latin-\xfc.png"
    open(odd, "wb").close()
    (tree / " spaces .png").touch()
    lines = [
        b"\xef\xbb\xbfin/a.jpg\r\n",
        odd + b"\n",
        b"  in/b.PNG  \n",
        b"in/ spaces .png\n",
        b"\n",
        b"a\0b\n",
        b"in/day",
    ]
    monkeypatch.setattr(sys, "stdin", Stdin(b"".join(lines)))
    found = list(expand(["-"]))
    assert [os.fsencode(source.path) for source in found[:5]] == [
        b"in/a.jpg",
        odd,
        b"in/b.PNG",
        b"in/ spaces .png",
        b"a\0b",
    ]
    assert all(source.path.exists() for source in (*found[:4], *found[5:])) and len(found) == 7


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_list_in_another_encoding_is_refused(tree, monkeypatch, encoding):
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    monkeypatch.setattr(sys, "stdin", Stdin(f"{mark}in/a.jpg\n".encode(encoding)))
    with pytest.raises(DataError, match="UTF-16 or UTF-32.*UTF-8"):
        list(expand(["-"]))


def test_a_link_to_itself_in_a_folder_is_one_bad_image(tree):
    before = names("in")
    (tree / "loop.png").symlink_to("loop.png")
    sources = list(expand(["in"]))
    assert sorted(each.name for each in sources) == sorted([*before, "loop"])
    [loop] = [each for each in sources if each.name == "loop"]
    with pytest.raises(DataError, match="loop.png"):
        loop.image()


def test_stdin_that_is_closed(tree, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="closed"):
        list(expand(["-"]))


def test_an_empty_folder_in_a_list_does_not_end_it(tree):
    (tree / "nothing").mkdir()
    assert names("-", stdin=["in/a.jpg\n", "in/nothing\n", "in/b.PNG\n"]) == ["a", "nothing", "b"]

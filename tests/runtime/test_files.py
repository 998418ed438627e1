"""Files are written whole, and names from data stay below their folder."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.runtime.documents import read_json
from m2f_cli.runtime.files import (
    Distinct,
    atomic,
    is_part,
    lies_in,
    output_path,
    remove_parts,
    safe_name,
    save_image,
    share_as_usual,
    write_json,
    write_text,
)
from m2f_cli.runtime.locks import locked

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["a", "a/b.v2", ".hidden/x", "été/写真", "with space/x y", "name."])
def test_a_plain_relative_name_is_kept(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("/etc/x", "etc/x"),
        ("../../x", "x"),
        ("a/../b", "a/b"),
        ("C:\\data\\x", "data/x"),
        ("..\\x", "x"),
        ("./a//b", "a/b"),
        ("a\0b", "a_b"),
        ("ab:c?", "ab_c_"),
        ("con", "_con"),
        ("NUL.png", "_NUL.png"),
    ],
)
def test_a_name_that_leads_out_or_is_no_file_name_is_changed(name, safe):
    assert safe_name(name) == safe


@pytest.mark.parametrize("name", ["", "..", "/", "...", " ", "C:"])
def test_a_name_without_any_part_gets_one_of_its_own(name):
    assert safe_name(name).startswith("unnamed-")
    assert safe_name("..") != safe_name("/")


def test_long_parts_are_cut_and_stay_different():
    names = [safe_name("x" * 300 + end) for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(os.fsencode(name)) <= 200 for name in names)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.sampled_from(["/", "\\", "C:", "../", ""]))
def test_no_name_leads_out_of_its_folder(name, prefix):
    folder = Path("/out")
    path = Path(os.path.normpath(output_path(folder, prefix + name, ".png")))
    assert folder in path.parents
    assert "\\" not in str(path)
    assert safe_name(safe_name(name)) == safe_name(name)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "x.txt"
    write_text(path, "old\n")
    with pytest.raises(ZeroDivisionError), atomic(path) as part:
        part.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old\n"
    assert [each.name for each in path.parent.iterdir()] == ["x.txt"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(M2FError, match="Cannot write .*x.json: (Not a directory|File exists)"):
        write_json(tmp_path / "file" / "x.json", {})


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/a/b.json", "https://host/x"])
def test_an_address_is_no_path_to_write_to(tmp_path, monkeypatch, address):
    """It would be a folder "s3:" here, which nobody finds in the store."""
    monkeypatch.chdir(tmp_path)
    for write in (lambda path: write_text(path, "x"), lambda path: locked(path, "A test").__enter__()):
        with pytest.raises(ConfigError, match=f"{address} is an address, where a path of this machine was expected"):
            write(Path(address))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a:b", "x/s3:/y", "s3"])
def test_a_colon_in_a_path_is_no_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_text(Path(name), "x")
    assert (tmp_path / name).read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_new_files_obey_the_umask_whoever_made_them(tmp_path, umask):
    old = os.umask(umask)
    try:
        with atomic(tmp_path / "x") as part:
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
        (tmp_path / "folder").mkdir()
        os.close(os.open(tmp_path / "folder" / "y", os.O_CREAT | os.O_WRONLY, 0o600))
        share_as_usual(tmp_path / "folder")
    finally:
        os.umask(old)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["x", "y"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "sub").mkdir()
    mine = {".mine.part", "mine.part", ".1-2.partial"}
    for name in mine | {".123-456.part"}:
        (tmp_path / "sub" / name).write_text("")
    assert is_part(tmp_path / ".123-456.part") and not is_part(tmp_path / "mine.part")
    remove_parts(tmp_path)
    assert {path.name for path in (tmp_path / "sub").iterdir()} == mine


@pytest.mark.parametrize("durable", [False, True])
def test_a_durable_file_is_like_any_other(tmp_path, durable):
    write_json(tmp_path / "x.json", {"a": 1}, durable=durable)
    assert (tmp_path / "x.json").read_text() == '{"a": 1}\n'


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a file's size are those of Linux")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_which_the_disk_takes_all_but_the_last_byte_is_an_error(tmp_path, kind):
    import resource

    image = Image.effect_noise((60, 40), 50)
    save_image(image, tmp_path / "whole", format=kind)
    size = (tmp_path / "whole").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(M2FError, match="Cannot write .*image"), atomic(tmp_path / "image") as part:
            save_image(image, part, format=kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_images_are_written_by_one_function():
    """Pillow's own way into a file, `image.save(path)`, loses the end where the disk takes a part of it."""
    allowed = {"file", "buffer", "encoded", "png"}  # memory, and a member of an archive
    for path in (ROOT / "m2f_cli").rglob("*.py"):
        if "benchmark" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".save") and node.args:
                of = ast.unparse(node.func)
                if of.startswith(("image.", "Image.")) or "convert(" in of or "_image(" in of:
                    assert ast.unparse(node.args[0]) in allowed, f"{path}:{node.lineno}"


def test_names_that_become_one_path_are_refused_with_both():
    distinct = Distinct("images")
    for name in ("a/x", "A/x", "b"):
        distinct.add(name)
    for name, other in (("/a/x", "a/x"), ("../b", "b"), ("a\\x", "a/x"), ("b", "b")):
        with pytest.raises(DataError, match="Two images are called") as caught:
            distinct.add(name)
        assert repr(name) in str(caught.value) and repr(other) in str(caught.value)


@pytest.mark.parametrize(("file", "inside"), [("x", "x.png/in"), ("a/x", "a/x.jpg/b/in"), ("x.v2", "x.v2.json/in")])
def test_a_file_where_another_name_needs_a_folder_is_refused_with_both(file, inside):
    for names in ((file, inside), (inside, file)):
        distinct = Distinct("images")
        for name in ("x/in", "x.v3/in", "y", "y.png", names[0]):
            distinct.add(name)
        with pytest.raises(DataError, match="a file where the other needs a folder") as caught:
            distinct.add(names[1])
        assert repr(file) in str(caught.value) and repr(inside) in str(caught.value)


def test_only_folders_named_as_files_of_these_suffixes_are_refused():
    distinct = Distinct("images", [".bmp"])
    for name in ("x", "x.png/in", "x.bm/in"):
        distinct.add(name)
    with pytest.raises(DataError, match="needs a folder"):
        distinct.add("x.bmp/in")


def test_what_lies_in_a_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    for name in ("x", "sub/x", "sub/../x", "out", str(folder / "x")):
        assert lies_in(folder, name), name
    for name in ("", "../x", "out/x", "/etc/passwd", "a\0b", "sub/../../x", str(tmp_path / "folder2" / "x")):
        assert not lies_in(folder, name), name


def test_json_keeps_names_that_utf8_cannot_hold(tmp_path):
    name = os.fsdecode(b"\xff\xe9.png")
    write_json(tmp_path / "x.json", {"name": name})
    assert read_json(tmp_path / "x.json") == {"name": name}

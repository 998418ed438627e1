"""Folders and archives as trees: the same names and bytes; nothing leads out, nothing explodes."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

from m2f_cli.errors import DataError
from m2f_cli.runtime import archives
from m2f_cli.runtime.archives import Archive, Folder, Layers, open_tree

FILES = {"set/train/a.png": b"one", "set/train/deep/b.PNG": b"two", "set/val/c.png": b"", "set/list.txt": b"a\nb\n"}
EVIL = ("../out.png", "/etc/passwd", "a/../../b.png", "C:\\x.png", "..\\x.png")


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


WRITERS = {"folder": write_folder, "x.zip": write_zip, "x.tar": write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_all_kinds_give_the_same(tmp_path, name):
    tree = open_tree(WRITERS[name](tmp_path / name, {**FILES, "set/.hidden.png": b"", "__MACOSX/set/a.png": b""}))
    if name == "folder":
        (tmp_path / name / "__MACOSX" / "set" / "a.png").unlink()
    tree = pickle.loads(pickle.dumps(tree))
    assert tree.names() == sorted(FILES)
    assert tree.names("set/train", ".png") == ["set/train/a.png", "set/train/deep/b.PNG"]
    assert tree.names("set/tra") == []
    assert {each: tree.read(each) for each in tree.names()} == FILES
    assert tree.has("set/val/c.png") and not tree.has("set/val") and tree.has_folder("set/val")
    assert not tree.has_folder("set/va")
    rooted = tree.rooted(["train", "val"], "set")
    assert rooted.names("val") == ["val/c.png"] and rooted.read("list.txt") == b"a\nb\n"
    assert tree.rooted(["nothing"], "set") is None
    with pytest.raises(DataError):
        tree.read("set/none.png")


def test_archives_in_a_folder_are_part_of_it(tmp_path):
    write_folder(tmp_path / "d", {"annotations/a.json": b"{}", "train/a.png": b"folder"})
    write_zip(tmp_path / "d" / "pictures.zip", {"set/train/a.png": b"zip", "set/train/b.png": b"zip"})
    write_tar(tmp_path / "d" / "annotations" / "more.tar", {"./panoptic/c.png": b"tar"})
    tree = open_tree(tmp_path / "d").rooted(["train", "annotations", "panoptic"], "set")
    assert isinstance(tree, Layers)
    assert {name: tree.read(name) for name in tree.names("", ".png")} == {
        "train/a.png": b"folder", "train/b.png": b"zip", "panoptic/c.png": b"tar",
    }  # fmt: skip
    assert tree.path("train/a.png") == tmp_path / "d" / "train" / "a.png" and tree.path("train/b.png") is None


@pytest.mark.parametrize("name", EVIL)
def test_names_that_lead_out_are_refused(tmp_path, name):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="leads out"):
        open_tree(write_tar(tmp_path / "x.tar", {"a.png": b"", name: b"evil"}))
    with pytest.raises(DataError, match="leads out"):
        open_tree(write_zip(tmp_path / "x.zip", {"a.png": b"", name: b"evil"}))
    with pytest.raises(DataError, match="leads out"):
        Folder(tmp_path / "d").read(name)


def test_links_of_a_tar_are_no_files(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"a{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert open_tree(path).names() == []


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1000)
    tree = open_tree(write_zip(tmp_path / "x.zip", {"a.png": b"\0" * 5000}))
    with pytest.raises(DataError, match="claims 5,000 bytes"):
        tree.read("a.png")


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_half_an_archive_is_refused(tmp_path, name):
    path = WRITERS[name](tmp_path / name, {"a.png": b"x" * 3000, "b.png": bytes(range(256)) * 20})
    path.write_bytes(path.read_bytes()[:2500 if name == "x.tar" else -30])
    with pytest.raises(DataError, match="half a download"):
        open_tree(path)


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", b"x" * 100)
    path.write_bytes(path.read_bytes().replace(b"xxx", b"xyx", 1))
    with pytest.raises(DataError, match="cannot be unpacked.*CRC"):
        open_tree(path).read("a.png")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_says_what_to_do(tmp_path, kind):
    path = write_tar(tmp_path / "x.tar", FILES, f"w:{kind}")
    with pytest.raises(DataError, match="compressed as a whole.*plain .tar"):
        open_tree(path)


@pytest.mark.parametrize("kind", ["md5", "sha1"])
def test_other_content_than_published(tmp_path, kind):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"x" * 3_000_000})
    digest = hashlib.new(kind, path.read_bytes()).hexdigest()
    archives.refuse_other_content(path, digest)
    with pytest.raises(DataError, match=f"has the {kind.upper()} {digest}; 0+ is published.*fetch it again"):
        archives.refuse_other_content(path, "0" * len(digest))


def test_which_archives_a_tree_is_read_from(tmp_path):
    write_folder(tmp_path / "d", {"train/a.png": b""})
    one = write_zip(tmp_path / "d" / "b.zip", {"set/train/b.png": b""})
    two = write_tar(tmp_path / "d" / "c.tar", {"set/train/c.png": b""})
    tree = open_tree(tmp_path / "d")
    assert archives.archive_files(tree) == archives.archive_files(tree.rooted(["train"], "set")) == [one, two]
    assert archives.archive_files(Folder(tmp_path)) == []


def test_an_archive_that_is_replaced_is_read_anew(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"old"})
    tree = Archive(path)
    assert tree.read("a.png") == b"old"
    write_zip(path, {"a.png": b"newer"})
    assert tree.read("a.png") == b"newer"


def test_what_is_no_archive(tmp_path):
    (tmp_path / "x.zip").write_text("<html>")
    for path, message in ((tmp_path / "x.zip", "no zip or tar"), (tmp_path / "none", "There is no")):
        with pytest.raises(DataError, match=message):
            open_tree(path)

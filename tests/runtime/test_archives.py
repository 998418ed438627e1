"""Folders and archives as trees: the same names and bytes; nothing leads out, nothing explodes."""

from __future__ import annotations

import hashlib
import io
import pickle
import resource
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from m2f_cli.errors import DataError
from m2f_cli.runtime import archives
from m2f_cli.runtime.trees import Archive, Folder, Layers, archive_files, open_tree

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
        "train/a.png": b"folder",
        "train/b.png": b"zip",
        "panoptic/c.png": b"tar",
    }
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
    path.write_bytes(path.read_bytes()[: 2500 if name == "x.tar" else -30])
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
    assert archive_files(tree) == archive_files(tree.rooted(["train"], "set")) == [one, two]
    assert archive_files(Folder(tmp_path)) == []


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


# --- hostile archives -------------------------------------------------------------------------------------------------


def patched(path: Path, name: str, **fields: int) -> Path:
    """Change fields of a zip's table of contents: what it claims of a file."""
    places = {
        "flags": (8, "H"),
        "method": (10, "H"),
        "crc": (16, "I"),
        "packed": (20, "I"),
        "size": (24, "I"),
        "offset": (42, "I"),
    }
    content = bytearray(path.read_bytes())
    at = content.rindex(name.encode()) - 46
    for field, value in fields.items():
        place, form = places[field]
        struct.pack_into(f"<{form}", content, at + place, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("a.jpg", (1 << 30) + 1, "claims 1,073,741,825 bytes; 67,108,864 are allowed"),
        ("a.json", 100 << 20, "claims 104,857,600 bytes; 67,108,864"),
        ("a.json", 0xFFFFFFFE, "claims"),
    ],
)
def test_what_claims_more_than_its_size_can_mean_is_refused(tmp_path, name, size, words):
    tree = open_tree(patched(write_zip(tmp_path / "x.zip", {name: bytes(1000)}), name, size=size))
    with pytest.raises(DataError, match=words):
        tree.read(name)


def test_no_more_is_unpacked_than_is_claimed(tmp_path):
    """Python's own reader unpacks all there is, and then cuts it."""
    content = bytes(600 << 20)
    path = write_zip(tmp_path / "x.zip", {"a.json": content})
    del content
    patched(path, "a.json", size=1000, crc=zlib.crc32(bytes(1000)))
    tree = open_tree(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), limit[1]))
    try:
        assert tree.read("a.json") == bytes(1000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_less_than_is_claimed_is_damage(tmp_path):
    tree = open_tree(patched(write_zip(tmp_path / "x.zip", {"a.json": b"abc" * 100}), "a.json", size=301))
    with pytest.raises(DataError, match="cannot be unpacked"):
        tree.read("a.json")


def test_an_archive_that_claims_too_much_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_TOTAL", 1 << 20)
    path = write_zip(tmp_path / "x.zip", {f"{i}.json": bytes(1 << 18) for i in range(8)})
    with pytest.raises(DataError, match="claims 2,097,152 bytes unpacked; 1,048,576 are allowed"):
        open_tree(path)


def test_files_that_share_their_bytes(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.json": bytes(range(256)) * 9, "b.json": bytes(range(256)) * 9})
    with pytest.raises(DataError, match="overlap"):
        open_tree(patched(path, "b.json", offset=0))


def test_two_files_of_one_name(tmp_path):
    for contents, fine in (((b"same", b"same"), True), ((b"one", b"two"), False)):
        path = tmp_path / "x.zip"
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
            for content in contents:
                archive.writestr("a.txt", content)
        if fine:
            assert open_tree(path).read("a.txt") == b"same"
        else:
            with pytest.raises(DataError, match="two files 'a.txt' that differ"):
                open_tree(path)


def test_encrypted_files_say_so(tmp_path):
    tree = open_tree(patched(write_zip(tmp_path / "x.zip", {"a.png": b"x"}), "a.png", flags=1))
    with pytest.raises(DataError, match="a.png is encrypted.*password"):
        tree.read("a.png")


def test_links_of_a_zip_are_no_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert open_tree(tmp_path / "x.zip").names() == []


@pytest.mark.parametrize("fields", [{"method": 99}, {"method": 14}, {"offset": 0xFFFFFFF0}, {"crc": 1}, {"packed": 3}])
def test_lies_of_a_zip_are_one_sentence(tmp_path, fields):
    path = patched(write_zip(tmp_path / "x.zip", {"a.png": bytes(range(256))}), "a.png", **fields)
    with pytest.raises(DataError, match="x.zip"):
        open_tree(path).read("a.png")


def test_too_many_files_and_too_long_a_table(tmp_path, monkeypatch):
    files = {f"{i}.txt": b"" for i in range(9)}
    for name in ("x.zip", "x.tar"):
        path = WRITERS[name](tmp_path / name, files)
        monkeypatch.setattr(archives, "MOST_FILES", 8)
        with pytest.raises(DataError, match="more than 8 files"):
            open_tree(path)
        monkeypatch.setattr(archives, "MOST_FILES", 9)
        assert len(open_tree(path).names()) == 9
    monkeypatch.setattr(archives, "MOST_DIRECTORY", 300)
    with pytest.raises(DataError, match="table of contents of"):
        open_tree(write_zip(tmp_path / "y.zip", files))


def test_a_tar_that_leads_back(tmp_path):
    """CVE-2025-8194: a negative size, and Python's reader never ends."""
    info = tarfile.TarInfo("a.png")
    head = bytearray(info.tobuf())
    head[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    (tmp_path / "x.tar").write_bytes(bytes(tarfile.TarInfo("b.png").tobuf()) + bytes(head) + bytes(10240))
    with pytest.raises(DataError, match=r"x.tar"):
        open_tree(tmp_path / "x.tar")


def test_a_tar_whose_file_is_longer_than_it(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 3 << 30
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(2048))
    with pytest.raises(DataError, match="x.tar"):
        open_tree(tmp_path / "x.tar").read("a.png")


def test_pipes_of_a_folder_are_no_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="no regular file"):
        Folder(tmp_path).read("a.png")


@pytest.mark.parametrize("name", WRITERS)
def test_parts_of_trees(tmp_path, name):
    tree = open_tree(WRITERS[name](tmp_path / name, FILES))
    assert tree.below("set").names(deep=False) == ["list.txt"]
    assert tree.below("set/train/..").read("list.txt") == b"a\nb\n"
    assert tree.below("set").names("train", deep=False) == ["train/a.png"]


def test_a_name_that_no_file_has(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        Folder(tmp_path).read("\ud800.png")

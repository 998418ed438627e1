"""Mutants of zip and tar archives: members, sizes, links, names, whole and cut."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from fuzz.harness import Target
from fuzz.spoil import spoil_bytes

from m2f_cli.dataset_tools.prepare.run import find
from m2f_cli.evaluation.score_files.score import open_predictions
from m2f_cli.plugins import get, names
from m2f_cli.runtime.trees import open_tree

Mutants = Iterator[tuple[str, Path]]
BOMB = 1 << 30  # bytes of zeros, a megabyte when packed
LARGEST_READ = 1 << 26  # bytes that a test reads of an archive
_FIELDS = (  # offsets in the records of a zip, and what stands there
    *((at, "<H") for at in (6, 8, 10, 26, 28, 30)),
    *((at, "<I") for at in (12, 14, 16, 18, 20, 22, 24, 38, 42)),
    (40, "<Q"),
)
_TAR_FIELDS = ((0, 100), (100, 8), (108, 8), *((124, 12),) * 3, (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
_TAR_VALUES = (b"", b"\xff" * 200, b"\x80" + b"\xff" * 11, b"7" * 200, b"-1", b" ", b"x", b"S", b"L", b"K", b"g")
_PAX = (
    *({"size": size} for size in ("99999999999", "-1", "x")),
    *({"GNU.sparse.map": "0,1"}, {"GNU.sparse.major": "1"}, {"path": "../x"}, {"x": "y" * 9000}, {"hdrcharset": "x"}),
)
_METHODS = (zipfile.ZIP_STORED,) * 20 + (zipfile.ZIP_DEFLATED,) * 20 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_NAMES = (
    *("a/b.png", "a/c.json", "./a/d.txt", "../up.png", "/etc/x.png", "C:/x.png", "a\\..\\b.png", "a/../../b.png", ""),
    *("a//b.png", "a/./b.png", "\0.png", "a\nb.png", "é.png", "x" * 300 + ".png", "a/" * 200 + "b.png", "a", "a/", "."),
    *("predictions.json", "panoptic.json", "images/validation/ADE_val_00000001.jpg", "__MACOSX/._x.png", "con.png"),
)


@functools.cache
def contents() -> tuple[bytes, ...]:
    """Contents of members: images, documents, nothing."""
    png = cv2.imencode(".png", np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()
    return (png, png, b'{"annotations": []}', b'{"formats": ["label-png"]}', b"", b"a.png 24 0.5\n", bytes(5000))


@functools.cache
def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.json", "w") as member:
        for _ in range(BOMB >> 20):
            member.write(bytes(1 << 20))
    return file.getvalue()


def zips(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done, content = _zip(rng)
        if rng.random() < 0.6:
            more, content = rng.choice((spoil_bytes, _spoil_records, _spoil_records))(rng, content)
            done = f"{done}, {more}"
        yield done, _written(rng, folder, content, ".zip")


def tars(rng: random.Random, folder: Path) -> Mutants:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done, content = _tar(rng)
        if rng.random() < 0.6:
            more, content = rng.choice((spoil_bytes, _spoil_header))(rng, content)
            done = f"{done}, {more}"
        if rng.random() < 0.1:
            content = rng.choice((gzip.compress, bz2.compress, lzma.compress))(content)
            done = f"packed {done}"
        yield done, _written(rng, folder, content, ".tar")


def _written(rng: random.Random, folder: Path, content: bytes, suffix: str) -> Path:
    """Write an archive under its usual name, under that of the other kind, or beside files in a folder."""
    for old in folder.glob("*"):
        old.unlink() if old.is_file() else [each.unlink() for each in old.iterdir()]
    path = folder / f"a{suffix if rng.random() < 0.9 else rng.choice(('.zip', '.tar', '.ZIP'))}"
    if rng.random() < 0.1:
        path = folder / "inside" / path.name
        path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path.parent if path.parent != folder else path


def _zip(rng: random.Random) -> tuple[str, bytes]:
    file = io.BytesIO()
    if rng.random() < 0.02:
        return "bomb", bomb()
    with zipfile.ZipFile(file, "w") as archive:
        count = rng.choice((0, 1, 2, 3, 5, 30))
        for number in range(count):
            name = rng.choice(_NAMES) if rng.random() < 0.4 else f"a/{number}{rng.choice(('.png', '.json', '.txt'))}"
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would cut it
            info.compress_type = rng.choice(_METHODS)
            info.external_attr = (
                rng.choice((0o644, 0o644, stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFIFO)) << 16
            )
            with archive.open(info, "w", force_zip64=rng.random() < 0.2) as member:
                member.write(rng.choice(contents()))
        archive.comment = rng.choice((b"", b"x" * 65_535, b"PK\5\6" + bytes(18)))
    return f"{count} members", file.getvalue()


def _spoil_records(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Change a field of a record of the zip, wherever it is."""
    marks = [at for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6") for at in _found(content, mark)]
    if not marks:
        return "no record", content
    at, done = rng.choice(marks), []
    for _ in range(rng.choice((1, 1, 2))):
        offset, form = rng.choice(_FIELDS)
        most = 256 ** struct.calcsize(form) - 1
        value = rng.choice((0, 1, 8, 9, 12, 14, 99, 0x0800, 1 << 20, 1 << 31, most, most - 1, len(content))) & most
        size = struct.calcsize(form)
        content = content[: at + offset] + struct.pack(form, value) + content[at + offset + size :]
        done.append(f"{value} at {at}+{offset}")
    return ", ".join(done), content


def _found(content: bytes, mark: bytes) -> list[int]:
    places, at = [], content.find(mark)
    while at >= 0 and len(places) < 1000:
        places.append(at)
        at = content.find(mark, at + 1)
    return places


def _tar(rng: random.Random) -> tuple[str, bytes]:
    file = io.BytesIO()
    kinds = (tarfile.REGTYPE,) * 6 + (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
    )
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        count = rng.choice((0, 1, 2, 3, 5, 300))
        for number in range(count):
            name = rng.choice(_NAMES) if rng.random() < 0.4 else f"a/{number}{rng.choice(('.png', '.json', '.txt'))}"
            info = tarfile.TarInfo(name)
            info.type, info.linkname = rng.choice(kinds), rng.choice(("", "/etc/passwd", "../../x", name))
            info.uid, info.mtime = rng.choice((0, 2**31)), rng.choice((0, 1.5))
            if form == tarfile.PAX_FORMAT and rng.random() < 0.2:
                info.pax_headers = rng.choice(_PAX)
            content = rng.choice(contents()) if info.type == tarfile.REGTYPE else b""
            info.size = len(content)
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # the name is too long for this form
                continue
    return f"{count} members", file.getvalue()


def _spoil_header(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Change a field of a header of the tar, and correct its sum."""
    heads = [at for at in range(0, len(content) - 511, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return "no header", content
    at = rng.choice(heads)
    offset, size = rng.choice(_TAR_FIELDS)
    value = rng.choice((*_TAR_VALUES, b"%o" % rng.choice((0, 1, 511, 512, 1 << 31, 1 << 33))))
    head = bytearray(content[at : at + 512])
    head[offset : offset + size] = value[:size].ljust(size, b"\0")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return f"{value[:12]!r} at {at}+{offset}", content[:at] + bytes(head) + content[at + 512 :]


def read_archive(path: Path) -> object:
    """List an archive and read what it holds, as readers of data sets do."""
    tree = open_tree(path)
    read = 0
    listed = tree.names()
    tree.rooted(("a", "images"), "ADEChallengeData2016")
    tree.has_folder("a")
    tree.below("a").names()
    for name in listed[:50]:
        read += len(tree.read(name))
        if read > LARGEST_READ:
            break
    return read


def read_predictions(path: Path) -> object:
    """Open predictions in an archive, as `m2f eval --predictions` does."""
    return open_predictions(path)


def read_preparer(path: Path) -> object:
    """Find a data set in an archive and plan its preparation, as `m2f data prepare` does."""
    chosen = names("preparers")
    preparer = get("preparers", chosen[path.stat().st_size % len(chosen)])
    tree, _ = find(preparer, path, path.parent / "out")
    return preparer.plan(tree, True)


TARGETS = (
    Target("zip", zips, read_archive, share=0.2),
    Target("tar", tars, read_archive, share=0.3),
    Target("zip of predictions", zips, read_predictions, share=0.1),
    Target("archive of a data set", zips, read_preparer, share=0.1),
)

"""One reader of images: sizes, pixels, masks and the exported program agree on all kinds, and bombs are refused."""

from __future__ import annotations

import ast
import importlib.util
import re
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.image_kinds import GREY16, RGB, encoded, plain, tiff, turned
from PIL import Image

import m2f_cli
from m2f_cli.data.formats.files import read_ids, read_values
from m2f_cli.dataset_tools.check.inspect_image import decode_small
from m2f_cli.errors import DataError
from m2f_cli.export.onnx import runner_source
from m2f_cli.inference.sources import IMAGES
from m2f_cli.structures.images import MAX_PIXELS, decode_image, image_size, open_image, read_image
from m2f_cli.structures.rgb import FORMATS

FILES = {**plain(), **turned()}
TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n0 0 moveto\nshowpage\n"


def answer(read, *arguments):
    try:
        return read(*arguments)
    except DataError as error:
        return error


@pytest.fixture(scope="module")
def exported_reader(tmp_path_factory):
    """The function by which an exported program reads an image, without onnxruntime."""
    path = tmp_path_factory.mktemp("runner") / "run_onnx.py"
    path.write_text(runner_source())
    spec = importlib.util.spec_from_file_location("run_onnx", path)
    module = importlib.util.module_from_spec(spec)
    present = sys.modules.get("onnxruntime")
    sys.modules["onnxruntime"] = present or types.ModuleType("onnxruntime")
    try:
        spec.loader.exec_module(module)
    finally:
        if present is None:
            del sys.modules["onnxruntime"]
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any("m2f_cli" in ast.dump(node) for node in imports)
    return module.read


@pytest.mark.parametrize("name", FILES)
def test_all_readers_agree(tmp_path, exported_reader, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    image, size = answer(read_image, path), answer(image_size, path)
    if isinstance(image, DataError):
        assert name in str(image)
        with pytest.raises(SystemExit):
            exported_reader(path)
        return
    assert size == image.shape[:2]
    assert np.array_equal(decode_image(FILES[name], "it"), image)
    if FILES[name][:2] == b"\xff\xd8":
        small, whole = decode_small(FILES[name])
        assert whole == size and small.size == size[::-1]
    assert np.array_equal(np.asarray(exported_reader(path)), image)


def test_the_exported_program_names_opencv_where_only_that_reads(tmp_path, monkeypatch, exported_reader):
    (tmp_path / "a.tif").write_bytes(FILES["rgb-float.tif"])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit, match="pip install opencv-python"):
        exported_reader(tmp_path / "a.tif")


@pytest.mark.parametrize("name", [name for name in turned() if re.match(r"(raw|lzw|big|float|grey|grey16|PNG)-", name)])
def test_images_are_turned_as_they_say(tmp_path, name):
    kind, orientation = name.split(".")[0].split("-")
    stored = {"grey": RGB[..., :1].repeat(3, -1), "grey16": (GREY16 >> 8).astype(np.uint8)[..., None].repeat(3, -1)}
    expected = TURNS.get(int(orientation), np.asarray)(stored.get(kind, RGB))
    (tmp_path / name).write_bytes(FILES[name])
    assert np.array_equal(read_image(tmp_path / name), expected)
    assert np.array_equal(decode_image(FILES[name], name), expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_does_not_turn_masks(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, content in (("v.png", encoded(RGB[..., 0], "PNG", exif=exif)), ("i.png", encoded(RGB, "PNG", exif=exif))):
        (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_values(tmp_path / "v.png"), RGB[..., 0])
    assert np.array_equal(read_ids(tmp_path / "i.png"), RGB.astype(np.int32) @ [1, 256, 65536])


def test_all_that_folders_are_searched_for_is_read():
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert readable | {".avif"} >= IMAGES


def test_images_are_opened_in_one_place():
    """Formats, sizes and errors of decoders are looked after there; elsewhere they would be forgotten."""
    package = Path(m2f_cli.__file__).parent
    allowed = {"structures/images.py", "structures/rgb.py"}
    names = {("Image", "open"), ("cv2", "imread"), ("cv2", "imdecode"), ("cv2", "imreadmulti"), ("io", "imread")}
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).as_posix() not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in names
    ]
    assert not found


# --- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.eps", "photo"])
@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name, content):
    marker = tmp_path / "marker"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    (tmp_path / name).write_bytes(content)
    for read in (read_image, image_size, read_values, read_ids):
        with pytest.raises(DataError, match="PostScript document, not an image"):
            read(tmp_path / name)
    assert not marker.exists()


def sparse_tiff(width, height, bits, channels, form, *extra, tags=()):
    """A TIFF that claims more than it has; compressed to nothing, or cut off."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 300),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, 1000),
        (284, 3, 1, 1),
        (339, 3, 1, form),
        *tags,
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II" + struct.pack("<HIH", 42, 8, len(entries)) + table + bytes(2000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (sparse_tiff(60_000, 60_000, 32, 3, 3), "too large"),
        (sparse_tiff(18_000, 18_000, 64, 3, 3), "too large"),
        (sparse_tiff(13_000, 13_000, 64, 3, 3), "too large: decoded it would take"),
        (sparse_tiff(13_000, 13_000, 32, 3, 3), "too large: decoded it would take"),
        (sparse_tiff(9, 9, 32, 3, 3, tags=[(322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16)]), "too large"),
        (sparse_tiff(9, 9, 8, 3, 1, tags=[(322, 4, 1, 1 << 16), (323, 4, 1, 1 << 16)]), "too large"),
        (sparse_tiff(9, 9, 32, 3, 3, tags=[(256, 4, 1, 60_000), (257, 4, 1, 60_000)]), "tag 256 twice"),
        (tiff(RGB, extra=[(257, 4, 1, 3)]), "tag 257 twice"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 70_000, "TIFF"),
        (b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 70_000, "TIFF|damaged"),
        (b"MM\0*", "TIFF"),
        (b"II*\0", "TIFF"),
    ],
)
def test_tiffs_that_claim_too_much(tmp_path, content, words):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_image(path)
    with pytest.raises(DataError):
        decode_image(content, "it")


def test_a_deflated_tiff_is_refused_before_it_is_unpacked(tmp_path):
    edge, rows = 14_000, 500
    strip, count = zlib.compress(bytes(edge * 12 * rows), 9), edge // rows
    entries = [
        (256, 4, 1, edge),
        (257, 4, 1, edge),
        (258, 3, 1, 32),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (278, 4, 1, rows),
        (284, 3, 1, 1),
        (339, 3, 1, 3),
        (273, 4, count, 500),
        (279, 4, count, 700),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = (b"II" + struct.pack("<HIH", 42, 8, len(entries)) + table).ljust(500, b"\0")
    head += struct.pack(f"<{count}I", *[1000] * count)
    (tmp_path / "a.tif").write_bytes(head.ljust(1000, b"\0") + strip)
    assert edge * edge > MAX_PIXELS
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="too large"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("x"),
        RecursionError("x"),
        SystemError("x"),
        MemoryError(),
        AssertionError(),
        ZeroDivisionError("x"),
        struct.error("x"),
        zlib.error("x"),
        AttributeError("x"),
        Image.DecompressionBombError("x"),
        Image.DecompressionBombWarning("x"),
        UserWarning("x"),
    ],
)
def test_whatever_a_decoder_raises_is_one_sentence(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, "PNG"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load, raising=False)
    with pytest.raises(DataError, match="a.png"):
        read_image(path)
    with pytest.raises(DataError, match="a.png"):
        read_values(path)


def test_text_that_explodes_in_a_png(tmp_path):
    chunk = b"a\0\0" + zlib.compress(bytes(80 << 20), 9)
    text = struct.pack(">I", len(chunk)) + b"zTXt" + chunk + struct.pack(">I", zlib.crc32(b"zTXt" + chunk))
    png = encoded(RGB, "PNG")
    at = png.index(b"IDAT") - 4
    with pytest.raises(DataError, match="it "):
        decode_image(png[:at] + text + png[at:], "it")


def test_pipes_and_devices_are_no_images(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="is no regular file"):
            read_image(path)
    for path in (Path("a\0b.png"), Path("x" * 5000), Path("\ud800.png")):
        with pytest.raises(DataError, match=r"cannot be read|There is no file"):
            read_image(path)


def test_what_pillow_does_not_know_is_no_mask():
    with pytest.raises(DataError, match="TIFF of a kind"), open_image(tiff(RGB.astype(np.float32)), "it"):
        pass
    with pytest.raises(DataError, match="empty"), open_image(b"", "it"):
        pass


def test_large_floats_are_converted_in_parts(monkeypatch):
    values = np.random.default_rng(0).random((50, 7, 3), np.float32)
    whole = read_image(values)
    monkeypatch.setattr("m2f_cli.structures.rgb.VALUES_AT_ONCE", 40)
    assert np.array_equal(read_image(values), whole) and np.array_equal(whole, np.rint(values * 255))
    assert np.array_equal(read_image(np.rint(values * 255)), whole)


def test_the_file_is_closed(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(encoded(RGB, "GIF", save_all=True, append_images=[Image.fromarray(255 - RGB)]))
    with open_image(path) as image:
        file = image.fp
    assert file is None or file.closed

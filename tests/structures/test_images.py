"""Every kind of image that people have: its pixels, or one clear error."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from m2f_cli.errors import DataError
from m2f_cli.structures.images import image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (7, 9), dtype=np.uint16)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "a.webp", "UPPER.PNG", "ümläut 图.png"])
def test_lossless_files_are_exact(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB), name, **options)), RGB)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)),
        (7, np.rot90(RGB, 2).transpose(1, 0, 2)),
        (8, np.rot90(RGB)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), "a.png", exif=exif)
    assert np.array_equal(read_image(path), turned)


def test_jpeg_orientation_of_a_phone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (40, 20), (250, 0, 0)), "a.jpg", exif=exif)
    assert read_image(path).shape == (40, 20, 3)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 100
    rgba[0, :, 3] = [255, 0, 51]
    expected = [[100, 0, 0], [255, 255, 255], [224, 204, 204]]  # 51 is a fifth: 0.2 · 100 + 0.8 · 255 = 224
    assert read_image(saved(tmp_path, Image.fromarray(rgba), "a.png"))[0].tolist() == expected
    assert read_image(rgba)[0].tolist() == expected


def test_palettes_become_their_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert read_image(saved(tmp_path, palette, "a.png"))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    path = saved(tmp_path, palette, "b.png", transparency=1)
    assert read_image(path)[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_keeps_the_high_byte(tmp_path, name):
    expected = np.repeat((GREY16 // 256).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GREY16), name)), expected)
    assert np.array_equal(read_image(GREY16), expected)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_colour_keeps_the_high_byte_and_the_channel_order(tmp_path, name):
    deep = np.random.default_rng(2).integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / name), (deep // 256).astype(np.uint8))


def test_float_tiffs_are_scaled_to_bytes(tmp_path):
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert read_image(saved(tmp_path, Image.fromarray(unit), "a.tiff"))[0, :, 0].tolist() == [0, 128, 255]
    colour = np.random.default_rng(3).random((4, 5, 3), dtype=np.float32)
    cv2.imwrite(str(tmp_path / "b.tiff"), colour[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "b.tiff"), np.rint(colour * 255).astype(np.uint8))
    whole = np.array([[0.0, 7.0, 255.0]], np.float32)
    assert read_image(saved(tmp_path, Image.fromarray(whole), "c.tiff"))[0, :, 0].tolist() == [0, 7, 255]
    with pytest.raises(DataError, match="from 0 to 300"):
        read_image(saved(tmp_path, Image.fromarray(np.array([[0.0, 300.0]], np.float32)), "d.tiff"))


def test_grey_bit_and_cmyk_images_become_rgb(tmp_path):
    assert read_image(saved(tmp_path, Image.fromarray(RGB[..., 0]), "l.png"))[3, 4].tolist() == [RGB[3, 4, 0]] * 3
    bits = Image.fromarray(RGB[..., 0] > 128)
    assert np.array_equal(read_image(saved(tmp_path, bits, "1.png"))[..., 2], (RGB[..., 0] > 128) * np.uint8(255))
    cmyk = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.tiff")
    assert read_image(cmyk)[0, 0].tolist() == [255, 0, 0]
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert read_image(saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:]))[0, 0, 0] == 255


def test_arrays_and_pil_images():
    copy = read_image(RGB)
    copy[:] = 0
    assert RGB.any(), "the result must be a copy"
    assert np.array_equal(read_image(Image.fromarray(RGB)), RGB)
    assert np.array_equal(read_image(RGB / 255.0), RGB)
    assert np.array_equal(read_image(RGB.astype(np.int64)), RGB)
    assert np.array_equal(read_image(RGB[:, ::-1, :1])[..., 1], RGB[:, ::-1, 0])
    assert read_image(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), -0.5), "from -0.5 to -0.5"),
        (np.full((4, 4), 1.5), "0 to 1"),
        (np.full((4, 4), 256), "int64 values"),
        (np.zeros((3, 8, 8)), "moveaxis"),
        (np.zeros((2, 3, 8, 8)), r"\(2, 3, 8"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.array([["a"]]), "<U1"),
        (np.zeros((4, 4), complex), "complex"),
        (7, "not int"),
        (None, "not NoneType"),
    ],
)
def test_arrays_that_are_no_images(bad, message):
    with pytest.raises(DataError, match=message):
        read_image(bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text\n", "is text"),
        (b"  <!DOCTYPE html><html>", "web page"),
        (b"%PDF-1.7 ...\x00", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIC"),
        (bytes(range(200, 250)) * 9, "c8 c9 ca"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"II*\0\xff\xff\xff\xff", "TIFF"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.gif", "a.bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_truncated_files_are_refused(tmp_path, name, kept):
    path = saved(tmp_path, Image.fromarray(np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and caught.value.hint


def test_missing_folder_and_too_large(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="is a folder"):
        read_image(str(tmp_path))
    path = saved(tmp_path, Image.new("1", (3000, 2000)), "bomb.png")
    with pytest.raises(DataError, match=r"6000000 pixels.*5,999,999"):
        read_image(path, max_pixels=5_999_999)
    assert read_image(path, max_pixels=6_000_000).shape == (2000, 3000, 3)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = saved(tmp_path, Image.new("1", (20_000, 20_000)), "bomb.png")
    with pytest.raises(DataError, match="too large"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_image_that_is_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), "a.jpg", exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == ((7, 9) if orientation < 5 else (9, 7))


def test_size_of_what_pillow_does_not_know_and_of_what_is_no_image(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.tiff"), np.zeros((7, 9, 3), np.float32))
    assert image_size(tmp_path / "deep.tiff") == (7, 9)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match="is text"):
        image_size(tmp_path / "a.png")
    with pytest.raises(DataError, match="There is no file"):
        image_size(tmp_path / "gone.png")

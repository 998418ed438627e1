"""Files of all kinds of images that people have, small ones: {name of the file: its content}."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
from PIL import Image, features

HEIGHT, WIDTH = 6, 8
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
GREY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
ORIENTATIONS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_opencv(pixels: np.ndarray, kind: str) -> bytes:
    return cv2.imencode(kind, pixels)[1].tobytes()


def tiff(pixels: np.ndarray, *, orientation: int | str | None = None, extra=(), order: str = "<") -> bytes:
    """An uncompressed TIFF of any type of values: (H, W) or (H, W, C)."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    bits, form = 8 * pixels.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels > 1 else 1),
        (273, 4, 1, 0),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
        (339, 3, channels, form),
        *extra,
    ]
    if isinstance(orientation, int):
        entries.append((274, 3, 1, orientation))
    elif orientation is not None:
        entries.append((274, 2, 4, int.from_bytes(orientation.encode().ljust(4, b"\0"), "little")))
    entries.sort()
    table, beyond = b"", b""
    end = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if kind == 3 and count > 2:
            table += struct.pack(f"{order}HHII", tag, kind, count, end + len(beyond))
            beyond += struct.pack(f"{order}{count}H", *[value] * count)
        elif kind == 3:
            table += struct.pack(f"{order}HHIHH", tag, kind, count, value, value if count == 2 else 0)
        else:
            table += struct.pack(f"{order}HHII", tag, kind, count, value)
    place = end + len(beyond)
    table = b"".join(
        struct.pack(f"{order}HHII", 273, 4, 1, place)
        if table[i : i + 2] == struct.pack(f"{order}H", 273)
        else table[i : i + 12]
        for i in range(0, len(table), 12)
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + beyond + data


def plain() -> dict[str, bytes]:
    """Each kind of pixels once."""
    palette = Image.fromarray(RNG.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8), mode="L").convert("P")
    palette.putpalette(list(range(0, 250, 3)))
    grey, rgba = RGB[..., 0], np.concatenate([RGB, ALPHA], -1)
    la = Image.fromarray(np.concatenate([RGB[..., :1], ALPHA], -1))
    unit = RNG.random((HEIGHT, WIDTH), np.float32)
    files = {
        "rgb.jpg": encoded(RGB, "JPEG"),
        "grey.jpg": encoded(grey, "JPEG"),
        "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
        "cmyk.jpg": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        "rgb.png": encoded(RGB, "PNG"),
        "rgba.png": encoded(rgba, "PNG"),
        "la.png": encoded(la, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "grey16.png": encoded(GREY16, "PNG"),
        "bits.png": encoded(grey > 99, "PNG"),
        "p.png": encoded(palette, "PNG"),
        "p-transparent.png": encoded(palette, "PNG", transparency=1),
        "rgb-key.png": encoded(RGB, "PNG", transparency=tuple(map(int, RGB[0, 0]))),
        "grey-key.png": encoded(grey, "PNG", transparency=int(grey[0, 0])),
        "rgb16.png": by_opencv(RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16), ".png"),
        "rgba16.png": by_opencv(RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16), ".png"),
        "rgb.tif": encoded(RGB, "TIFF"),
        "lzw.tif": encoded(RGB, "TIFF", compression="tiff_lzw"),
        "rgba.tif": encoded(rgba, "TIFF"),
        "la.tif": encoded(la, "TIFF"),
        "p.tif": encoded(palette, "TIFF"),
        "bits.tif": encoded(grey > 99, "TIFF"),
        "cmyk.tif": encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
        "lab.tif": encoded(Image.frombytes("LAB", (WIDTH, HEIGHT), RGB.tobytes()), "TIFF"),
        "grey16.tif": encoded(GREY16, "TIFF"),
        "grey16-big.tif": tiff(GREY16, order=">"),
        "unit.tif": encoded(unit, "TIFF"),
        "range.tif": encoded(unit * 300, "TIFF"),
        "nan.tif": encoded(unit * np.nan, "TIFF"),
        "whole.tif": encoded(np.rint(unit * 255), "TIFF"),
        "int32.tif": encoded(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "rgb16.tif": tiff(RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)),
        "rgb16-big.tif": tiff(RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16), order=">"),
        "rgb-float.tif": tiff(RNG.random((HEIGHT, WIDTH, 3), np.float32)),
        "rgba-double.tif": tiff(RNG.random((HEIGHT, WIDTH, 4))),
        "rgb.bmp": encoded(RGB, "BMP"),
        "grey.bmp": encoded(grey, "BMP"),
        "rgb.ppm": encoded(RGB, "PPM"),
        "grey.pgm": encoded(grey, "PPM"),
        "grey16.pgm": b"P5 8 6 65535\n" + GREY16.astype(">u2").tobytes(),
        "float.pfm": b"Pf 8 6 -1.0\n" + unit.astype("<f4").tobytes(),
        "bits.pbm": encoded(grey > 99, "PPM"),
        "rgb.gif": encoded(RGB, "GIF"),
        "moves.gif": encoded(RGB, "GIF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "transparent.gif": encoded(palette, "GIF", transparency=1),
        "moves.png": encoded(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "pages.tif": encoded(RGB, "TIFF", save_all=True, append_images=[Image.new("L", (3, 3))]),
        "rgb.tga": encoded(RGB, "TGA"),
        "rgba.tga": encoded(rgba, "TGA"),
        "two.mpo": encoded(RGB, "MPO", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    }
    if features.check("webp"):
        files |= {"rgb.webp": encoded(RGB, "WEBP", lossless=True), "rgba.webp": encoded(rgba, "WEBP", lossless=True)}
    if features.check("jpg_2000"):
        files |= {"rgb.jp2": encoded(RGB, "JPEG2000"), "rgba.jp2": encoded(rgba, "JPEG2000")}
        files["grey16.jp2"] = encoded(GREY16, "JPEG2000")
    if features.check("avif"):
        files |= {"rgb.avif": encoded(RGB, "AVIF"), "rgba.avif": encoded(rgba, "AVIF")}
    return files


def turned() -> dict[str, bytes]:
    """Kinds that can say how they are to be turned, for each of `ORIENTATIONS`, and some ways to say nonsense."""
    files = {}
    kinds = ["JPEG", "PNG", "MPO", *(kind for kind in ("WEBP", "AVIF") if features.check(kind.lower()))]
    for orientation in ORIENTATIONS:
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in kinds:
            more = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "MPO" else {}
            files[f"{kind}-{orientation}.{kind.lower()}"] = encoded(RGB, kind, exif=exif, **more)
        files[f"raw-{orientation}.tif"] = tiff(RGB, orientation=orientation)
        files[f"grey16-{orientation}.tif"] = tiff(GREY16, orientation=orientation)
        files[f"grey-{orientation}.tif"] = tiff(RGB[..., 0], orientation=orientation)
        files[f"float-{orientation}.tif"] = tiff(RGB.astype(np.float32) / 255, orientation=orientation)
        files[f"big-{orientation}.tif"] = tiff(RGB.astype(np.uint16) << 8, orientation=orientation, order=">")
        if 1 <= orientation <= 8:
            files[f"lzw-{orientation}.tif"] = encoded(RGB, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation})
        xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
        files[f"xmp-{orientation}.jpg"] = encoded(RGB, "JPEG", xmp=xmp)
        files[f"xmp-{orientation}.tif"] = encoded(RGB, "TIFF", tiffinfo={700: xmp})
    files["text.tif"] = tiff(RGB, orientation="6")
    files["text-float.tif"] = tiff(RGB.astype(np.float32) / 255, orientation="6")
    files["twice.tif"] = tiff(RGB, orientation=6, extra=[(274, 3, 1, 1)])
    for name, data in {"text": b"\2\0\4\0\0\0" + b"6\0\0\0", "two": b"\3\0\2\0\0\0" + b"\6\0\1\0", "none": b""}.items():
        body = b"\1\0\x12\1" + data if data else b"\0\0"
        files[f"{name}.jpg"] = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + body + bytes(4))
    files["broken.jpg"] = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    files["nonsense.jpg"] = encoded(RGB, "JPEG", exif=b"Exif\0\0nonsense")
    turn = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    files["late.png"] = _with_late_exif(encoded(RGB, "PNG", exif=turn))
    return files


def _with_late_exif(png: bytes) -> bytes:
    """The chunk of EXIF behind those of the pixels, where it may stand, too."""
    at = png.index(b"eXIf") - 4
    length = 12 + int.from_bytes(png[at : at + 4], "big")
    rest = png[:at] + png[at + length :]
    end = rest.index(b"IEND") - 4
    return rest[:end] + png[at : at + length] + rest[end:]

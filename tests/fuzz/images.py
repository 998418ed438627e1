"""Targets of image files: as images, as label maps and as id maps."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from helpers import image_kinds

from m2f_cli.data.formats.files import read_ids, read_values
from m2f_cli.dataset_tools.check.inspect_image import decode_small
from m2f_cli.errors import M2FError
from m2f_cli.evaluation.score_files.pngs import decode_ids, decode_mask, decode_values
from m2f_cli.structures.images import image_size, read_image

from .harness import Target
from .mutators import file_mutants, mutate_bytes

SIZE = (image_kinds.HEIGHT, image_kinds.WIDTH)


def _images() -> dict[str, bytes]:
    turned = image_kinds.turned()
    return {**image_kinds.plain(), **{name: turned[name] for name in list(turned)[::7]}}


def _masks() -> dict[str, bytes]:
    ids = np.arange(48).reshape(SIZE)
    colors = np.stack([ids, ids // 2, ids * 0], -1).astype(np.uint8)
    files = {
        "labels.png": image_kinds.encoded(ids.astype(np.uint8), "PNG"),
        "labels16.png": image_kinds.encoded((ids * 1000).astype(np.uint16), "PNG"),
        "ids.png": image_kinds.encoded(colors, "PNG"),
        "mask.png": image_kinds.encoded(ids % 2 > 0, "PNG"),
    }
    return {**files, **{name: data for name, data in image_kinds.plain().items() if name.endswith((".png", ".tif"))}}


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return (kind, data) of the chunks of a PNG."""
    found, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _checked(content: bytes) -> bytes:
    return content + struct.pack(">I", zlib.crc32(content))


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(data)) + _checked(kind + data) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@functools.cache
def _zeros(count: int) -> bytes:
    """Return that many zeros, compressed: small in the file, and large when they are unpacked."""
    return zlib.compress(bytes(count), 9)


def _png_mutants(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """PNGs whose chunks are changed and whose checksums are right."""
    samples = {name: data for name, data in {**_images(), **_masks()}.items() if name.lower().endswith("png")}
    other = [b"tRNS", b"PLTE", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"sBIT", b"aBCD"]
    while True:
        name = rng.choice(list(samples))
        whole = _chunks(samples[name])
        chunks = list(whole)
        for _ in range(rng.choice([1, 1, 2])):
            at, pick = rng.randrange(len(chunks)), rng.randrange(7)
            kind, data = chunks[at]
            if pick == 0:
                del chunks[at]
            elif pick == 1:
                chunks.insert(rng.randrange(len(chunks) + 1), chunks[at])
            elif pick == 2:
                packed = _zeros(rng.choice([0, 100, 1 << 20, 100 << 20]))
                new = rng.choice(other)
                chunks.insert(at, (new, rng.choice([b"", b"x\0\0" + packed, rng.randbytes(rng.randrange(40))])))
            elif pick == 3 and kind == b"IDAT":
                rows = zlib.decompress(data) if chunks == whole and len(whole) < 4 else b""
                chunks[at] = (kind, zlib.compress(mutate_bytes(rng, rows)[1]))
            elif pick < 5 and kind == b"IHDR":
                sides = [rng.choice([0, 1, 8, 9, 65536, 13377, 2**31 - 1, 2**31, 2**32 - 1]) for _ in range(2)]
                chunks[at] = (kind, struct.pack(">II", *sides) + data[8:])
            else:
                chunks[at] = (kind, mutate_bytes(rng, data)[1][: 1 << 20])
            if not chunks:
                break
        path = folder / name
        path.write_bytes(_png(chunks))
        yield f"{name}: chunks", path
        path.unlink()


def read(path: Path) -> None:
    """Read an image in all ways that read whole images. A wrong size is a fault, too."""
    pixels_HW3 = read_image(path)
    if image_size(path) != pixels_HW3.shape[:2]:
        raise AssertionError(f"image_size says {image_size(path)}, read_image {pixels_HW3.shape}")
    if pixels_HW3.dtype != np.uint8 or pixels_HW3.shape[2:] != (3,):
        raise AssertionError(f"read_image gives {pixels_HW3.dtype} {pixels_HW3.shape}")


def read_mask(path: Path) -> None:
    """Read a file as every kind of mask; the first error is raised at the end."""
    errors, content, where = [], path.read_bytes(), str(path)
    ways = (
        lambda: read_values(path),
        lambda: read_ids(path),
        lambda: decode_values(content, SIZE, where),
        lambda: decode_ids(content, SIZE, where),
        lambda: decode_mask(content, SIZE, where),
        lambda: decode_small(content),
    )
    for way in ways:
        try:
            way()
        except M2FError as error:
            errors.append(error)
    if len(errors) == len(ways) - 1 or len(errors) == len(ways):
        raise errors[0]


TARGETS = [
    Target("images", file_mutants(_images), read, share=3.0),
    Target("images png chunks", _png_mutants, read),
    Target("masks", file_mutants(_masks), read_mask, share=2.0),
    Target("masks png chunks", _png_mutants, read_mask),
]

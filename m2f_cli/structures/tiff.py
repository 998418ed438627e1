"""Reader of the head of a TIFF, for limits of memory. Programs that m2f exports hold a copy of this file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_WIDTH, _LENGTH, _BITS, _ORIENTATION, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 258, 274, 277, 322, 323
_TAGS = (_WIDTH, _LENGTH, _BITS, _ORIENTATION, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH)
_KINDS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # of whole numbers
_MOST_VALUES = 64  # of one tag that is looked at: bits of that many channels
_MOST_TAGS = 65535  # libtiff refuses a directory of more
_ORDERS = {b"II": "<", b"MM": ">"}


class TiffHead(NamedTuple):
    """Description of the pixels in the first directory of a TIFF.

    Attributes:
        size: (height, width) as stored, before the image is turned; zeros where the file does not say.
        num_bytes: size of the decoded image in bytes, or of one of its tiles where that is more.
        orientation: EXIF orientation, 1 to 8; 1 where the file does not say.
        turned: (offset in the file, `struct` format) of each value of the orientation tag.
    """

    size: tuple[int, int]
    num_bytes: int
    orientation: int
    turned: tuple[tuple[int, str], ...]

    def unturned(self, content: bytes) -> bytes:
        """Return the file with orientation 1, because OpenCV turns only some kinds of TIFF."""
        changed = bytearray(content)
        for place, kind in self.turned:
            struct.pack_into(kind, changed, place, 1)
        return bytes(changed)


def read_tiff_head(file: BinaryIO) -> TiffHead | None:
    """Read the head of a TIFF or BigTIFF as far as it goes. Return None for other files.

    Raises:
        ValueError: the file has two different widths or heights.
    """
    file.seek(0)
    magic = file.read(4)
    order = _ORDERS.get(magic[:2], "<")
    if magic == magic[:2] + struct.pack(f"{order}H", 42) and magic[:2] in _ORDERS:
        offset, count, entry = f"{order}I", f"{order}H", f"{order}HHI4s"
    elif magic == magic[:2] + struct.pack(f"{order}H", 43) and magic[:2] in _ORDERS:
        file.seek(8)
        offset, count, entry = f"{order}Q", f"{order}Q", f"{order}HHQ8s"
    else:
        return None
    values_of: dict[int, list[int]] = {}
    turned: list[tuple[int, str]] = []
    for tag, kind, values, place in _entries(file, offset, count, entry):
        form = f"{order}{min(values, _MOST_VALUES)}{_KINDS[kind]}"
        if struct.calcsize(form) > struct.calcsize(offset):
            place = (_read(file, offset, place) or (0,))[0]
        values_of.setdefault(tag, []).extend(_read(file, form, place) or ())
        if tag == _ORIENTATION and values:
            turned.append((place, order + _KINDS[kind]))
    return _head(values_of, tuple(turned))


def _entries(file: BinaryIO, offset: str, count: str, entry: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, kind, number of values, and the offset of the values (or of a pointer to them)."""
    [first] = _read(file, offset) or (0,)
    [number] = _read(file, count, first) or (0,)
    at, length = first + struct.calcsize(count), struct.calcsize(entry)
    for place in range(at, at + length * min(number, _MOST_TAGS), length):
        fields = _read(file, entry, place)
        if fields is None:
            return
        tag, kind, values = fields[:3]
        if tag in _TAGS and kind in _KINDS:
            yield tag, kind, values, place + length - struct.calcsize(offset)


def _head(values_of: dict[int, list[int]], turned: tuple[tuple[int, str], ...]) -> TiffHead:
    for tag in (_WIDTH, _LENGTH):  # libtiff takes the first of equal tags, other readers the last
        if len(set(values_of.get(tag, []))) > 1:
            raise ValueError(f"the TIFF gives its tag {tag} twice: {values_of[tag][0]} and {values_of[tag][1]}")
    most = {tag: max(values, default=0) for tag, values in values_of.items()}
    height, width = most.get(_LENGTH, 0), most.get(_WIDTH, 0)
    pixels = max(height * width, most.get(_TILE_LENGTH, 0) * most.get(_TILE_WIDTH, 0))
    num_bytes = pixels * max(1, most.get(_SAMPLES, 1)) * max(8, most.get(_BITS, 1)) // 8
    return TiffHead((height, width), num_bytes, next(iter(values_of.get(_ORIENTATION, [])), 1), turned)


def _read(file: BinaryIO, form: str, place: int | None = None) -> tuple[int, ...] | None:
    """Read numbers by a `struct` format. Return None where the file ends before."""
    if place is not None:
        file.seek(place)
    content = file.read(struct.calcsize(form))
    return struct.unpack(form, content) if len(content) == struct.calcsize(form) else None

"""Images that are the same, or look the same: exact digests, and difference hashes that are compared by bands."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...data.records import Record, is_file

EDGE = 8
FLAT = 8  # grey levels: an image with less contrast than this has no look of its own
BANDS = 8  # of 16 bits each
# Two hashes that differ in fewer bits than there are bands agree in at least one band whole: none of them is missed.
MOST_BITS = BANDS - 1
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def digest(content: bytes) -> bytes:
    """16 bytes that only the same content has."""
    return hashlib.blake2b(content, digest_size=16).digest()


def difference_hash(image: Image.Image) -> bytes | None:
    """128 bits of how an image looks: whether each of 9 x 9 patches is brighter than its left and its upper neighbour.

    Copies of other sizes, qualities, formats or brightness differ in a few bits.

    Returns:
        16 bytes; None for an image that is the same grey all over.
    """
    grey = image.convert("L").convert("F")  # floats: rounded to whole numbers, equal neighbours would be noise
    patches = np.asarray(grey.resize((EDGE + 1, EDGE + 1), Image.Resampling.BOX))
    if np.ptp(patches) < FLAT:
        return None
    across = patches[:EDGE, 1:] > patches[:EDGE, :-1]
    down = patches[1:, :EDGE] > patches[:-1, :EDGE]
    return np.packbits(np.stack([across, down])).tobytes()


@dataclass
class Prints:
    """The digests and hashes of the images of a split: some hundred bytes for each."""

    split: str
    names: list[str] = field(default_factory=list, repr=False)
    digests: list[bytes] = field(default_factory=list, repr=False)
    hashes: list[bytes | None] = field(default_factory=list, repr=False)

    def add(self, name: str, exact: bytes, look: bytes | None) -> None:
        self.names.append(name)
        self.digests.append(exact)
        self.hashes.append(look)


@dataclass(frozen=True)
class Twin:
    """An image and one that is the same file (`identical`) or looks the same; `bits` of 128 differ in their hashes."""

    name: str
    split: str
    other: str
    other_split: str
    identical: bool
    bits: int = 0


def repeats(prints: Prints) -> list[Twin]:
    """Images of a split whose file is that of an earlier image of it."""
    first: dict[bytes, str] = {}
    found = []
    for name, exact in zip(prints.names, prints.digests, strict=True):
        if exact in first:
            found.append(Twin(name, prints.split, first[exact], prints.split, identical=True))
        first.setdefault(exact, name)
    return found


def twins(mine: Prints, theirs: Prints) -> list[Twin]:
    """The images of one split that are in another, or look like one there (at most 7 of 128 bits differ), each with
    the one that it is most like."""
    exact = dict(zip(reversed(theirs.digests), reversed(theirs.names), strict=True))
    found = []
    for index, (other, bits) in enumerate(_nearest(mine.hashes, theirs.hashes)):
        name, same = mine.names[index], exact.get(mine.digests[index])
        if same is not None:
            found.append(Twin(name, mine.split, same, theirs.split, identical=True))
        elif other is not None:
            found.append(Twin(name, mine.split, theirs.names[other], theirs.split, identical=False, bits=bits))
    return found


def shared_files(mine: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the names of images whose files are equal, in both splits. Only files of one length are read."""
    lengths, others = _by_length(mine), _by_length(theirs)
    pairs = []
    for length in lengths.keys() & others.keys():
        known = {digest(record.image.read_bytes()): record.name for record in others[length]}
        own = ((record.name, digest(record.image.read_bytes())) for record in lengths[length])
        pairs += [(name, known[exact]) for name, exact in own if exact in known]
    return sorted(pairs)


def _by_length(records: Sequence[Record]) -> dict[int, list[Record]]:
    found = defaultdict(list)
    for record in records:
        if record.image is not None and is_file(record.image):
            found[record.image.stat().st_size].append(record)
    return found


def _nearest(mine: Sequence[bytes | None], theirs: Sequence[bytes | None]) -> Iterator[tuple[int | None, int]]:
    """For each of `mine` the position of the nearest of `theirs` and the bits that differ; None where none is near."""
    known = [position for position, each in enumerate(theirs) if each is not None]
    there = _as_bytes([theirs[position] for position in known])
    here = _as_bytes([each for each in mine if each is not None])
    pairs = zip(here, _sharing_a_band(here, there), strict=True)
    for each in mine:
        own, candidates = (None, ()) if each is None else next(pairs)
        bits = _ONES[there[candidates] ^ own].sum(axis=1) if len(candidates) else np.array([MOST_BITS + 1])
        best = int(bits.argmin())
        yield (known[candidates[best]], int(bits[best])) if bits[best] <= MOST_BITS else (None, 0)


def _sharing_a_band(here: np.ndarray, there: np.ndarray) -> Iterator[np.ndarray]:
    """For each row of `here`, the rows of `there` that have at least one band in common with it; some several times."""
    bands = list(zip(here.view(np.uint16).T, there.view(np.uint16).T, strict=True))
    orders = [np.argsort(theirs, kind="stable") for _, theirs in bands]
    ranges = [
        (np.searchsorted(theirs, mine, "left", order), np.searchsorted(theirs, mine, "right", order))
        for (mine, theirs), order in zip(bands, orders, strict=True)
    ]
    for row in range(len(here)):
        yield np.concatenate([order[low[row] : high[row]] for order, (low, high) in zip(orders, ranges, strict=True)])


def _as_bytes(hashes: Sequence[bytes]) -> np.ndarray:
    """(N, 16) uint8"""
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 2 * BANDS)

"""Duplicates and near duplicates of images, by exact digests and by difference hashes that are compared in bands."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...data.records import Record, is_file

EDGE = 8
FLAT = 8  # grey levels; an image with less contrast cannot be compared
BANDS = 8  # of 16 bits each
# Two hashes that differ in fewer bits than there are bands agree in at least one whole band, so no pair is missed.
MOST_BITS = BANDS - 1
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def digest(content: bytes) -> bytes:
    """Return 16 bytes that identify the content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def difference_hash(image: Image.Image) -> bytes | None:
    """Return 128 bits of an image's appearance, from the brightness of 9 x 9 patches.

    Each bit says if a patch is brighter than its left or its upper neighbour. Copies of other sizes, qualities, formats
    or brightness differ in a small number of bits.

    Returns:
        16 bytes, or None for an image with too little contrast.
    """
    grey = image.convert("L").convert("F")  # floats, because rounding would turn equal neighbours into noise
    patches = np.asarray(grey.resize((EDGE + 1, EDGE + 1), Image.Resampling.BOX))
    if np.ptp(patches) < FLAT:
        return None
    across = patches[:EDGE, 1:] > patches[:EDGE, :-1]
    down = patches[1:, :EDGE] > patches[:-1, :EDGE]
    return np.packbits(np.stack([across, down])).tobytes()


@dataclass
class Prints:
    """Digests and hashes of the images of a split. They take some hundred bytes for each image.

    Attributes:
        split: name of the split.
        names: names of the images.
        digests: see `digest`.
        hashes: see `difference_hash`.
    """

    split: str
    names: list[str] = field(default_factory=list, repr=False)
    digests: list[bytes] = field(default_factory=list, repr=False)
    hashes: list[bytes | None] = field(default_factory=list, repr=False)

    def add(self, name: str, exact: bytes, look: bytes | None) -> None:
        self.names.append(name)
        self.digests.append(exact)
        self.hashes.append(look)


@dataclass(frozen=True)
class DuplicatePair:
    """Pair of duplicate or near-duplicate images.

    Attributes:
        name: name of the image.
        split: split of the image.
        other: name of its duplicate.
        other_split: split of the duplicate.
        identical: True if both files are equal, False if the images only look the same.
        bits: number of bits, of 128, that differ in their hashes.
    """

    name: str
    split: str
    other: str
    other_split: str
    identical: bool
    bits: int = 0


def repeats(prints: Prints) -> list[DuplicatePair]:
    """Return the images of a split whose file equals that of an earlier image of the split."""
    first: dict[bytes, str] = {}
    pairs = []
    for name, exact in zip(prints.names, prints.digests, strict=True):
        if exact in first:
            pairs.append(DuplicatePair(name, prints.split, first[exact], prints.split, identical=True))
        first.setdefault(exact, name)
    return pairs


def duplicates(prints: Prints, others: Prints) -> list[DuplicatePair]:
    """Return the images of one split that are also in another, or look like an image there.

    At most 7 of 128 bits of such a pair differ. Each image is paired with the most similar one.
    """
    exact = dict(zip(reversed(others.digests), reversed(others.names), strict=True))
    pairs = []
    for index, (other, bits) in enumerate(_nearest(prints.hashes, others.hashes)):
        name, same = prints.names[index], exact.get(prints.digests[index])
        if same is not None:
            pairs.append(DuplicatePair(name, prints.split, same, others.split, identical=True))
        elif other is not None:
            pairs.append(
                DuplicatePair(name, prints.split, others.names[other], others.split, identical=False, bits=bits)
            )
    return pairs


def shared_files(records: Sequence[Record], others: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the names of images whose files are equal, in both splits. Only files of equal length are read."""
    lengths, other_lengths = _by_length(records), _by_length(others)
    pairs = []
    for length in lengths.keys() & other_lengths.keys():
        known = {digest(record.image.read_bytes()): record.name for record in other_lengths[length]}
        own = ((record.name, digest(record.image.read_bytes())) for record in lengths[length])
        pairs += [(name, known[exact]) for name, exact in own if exact in known]
    return sorted(pairs)


def _by_length(records: Sequence[Record]) -> dict[int, list[Record]]:
    by_length = defaultdict(list)
    for record in records:
        if record.image is not None and is_file(record.image):
            by_length[record.image.stat().st_size].append(record)
    return by_length


def _nearest(hashes: Sequence[bytes | None], others: Sequence[bytes | None]) -> Iterator[tuple[int | None, int]]:
    """Yield, for each hash, the position of the nearest of `others` and the number of bits that differ.

    The position is None if none is near.
    """
    known = [position for position, each in enumerate(others) if each is not None]
    other_hashes_NB = _as_bytes([others[position] for position in known])
    hashes_NB = _as_bytes([each for each in hashes if each is not None])
    pairs = zip(hashes_NB, _sharing_a_band(hashes_NB, other_hashes_NB), strict=True)
    for each in hashes:
        own, candidates = (None, ()) if each is None else next(pairs)
        bits = _ONES[other_hashes_NB[candidates] ^ own].sum(axis=1) if len(candidates) else np.array([MOST_BITS + 1])
        best = int(bits.argmin())
        yield (known[candidates[best]], int(bits[best])) if bits[best] <= MOST_BITS else (None, 0)


def _sharing_a_band(hashes_NB: np.ndarray, other_hashes_NB: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, for each hash, the rows of the other hashes that share a band with it. Rows may occur repeatedly."""
    bands = list(zip(hashes_NB.view(np.uint16).T, other_hashes_NB.view(np.uint16).T, strict=True))
    orders = [np.argsort(other_band, kind="stable") for _, other_band in bands]
    ranges = [
        (np.searchsorted(other_band, band, "left", order), np.searchsorted(other_band, band, "right", order))
        for (band, other_band), order in zip(bands, orders, strict=True)
    ]
    for row in range(len(hashes_NB)):
        yield np.concatenate([order[low[row] : high[row]] for order, (low, high) in zip(orders, ranges, strict=True)])


def _as_bytes(hashes: Sequence[bytes]) -> np.ndarray:
    """Return hashes as (N, 16) uint8."""
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 2 * BANDS)

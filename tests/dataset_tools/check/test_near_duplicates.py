"""Images that are the same or look the same: no near copy is missed, and hashes survive what copies go through."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from m2f_cli.dataset_tools.check.near_duplicates import MOST_BITS, Prints, difference_hash, duplicates, repeats


def scene(seed, size=(120, 160)):
    """Soft blobs: neither noise nor flat, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def prints(split, hashes):
    found = Prints(split)
    for number, look in enumerate(hashes):
        found.add(str(number), f"{split}{number}".encode(), look)
    return found


def test_no_near_copy_is_missed():
    """The bands against all pairs. A third of `mine` are copies of `theirs` with 1 to 12 bits turned."""
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 2, (200, 128), dtype=np.uint8)
    mine = rng.integers(0, 2, (90, 128), dtype=np.uint8)
    for i in range(0, 90, 3):
        mine[i] = theirs[i] ^ np.isin(np.arange(128), rng.permutation(128)[: 1 + i % 12])
    distances = (mine[:, None] != theirs[None]).sum(axis=2)
    expected = {str(i): int(row.min()) for i, row in enumerate(distances) if row.min() <= MOST_BITS}
    packed = [[None, *(np.packbits(row).tobytes() for row in rows)] for rows in (mine, theirs)]
    found = duplicates(prints("val", packed[0]), prints("train", packed[1]))
    assert {str(int(twin.name) - 1): twin.bits for twin in found} == expected
    assert 10 < len(expected) < 30
    assert all(distances[int(t.name) - 1, int(t.other) - 1] == t.bits for t in found)


def test_nothing_to_compare_with():
    some = prints("val", [b"\0" * 16, None])
    assert duplicates(some, prints("train", [])) == duplicates(prints("train", []), some) == repeats(some) == []


def test_flat_images_look_like_nothing():
    assert difference_hash(Image.new("RGB", (40, 30), "gray")) is None
    assert len(difference_hash(scene(0))) == 16


@pytest.mark.parametrize("seed", range(5))
def test_hashes_are_robust(seed):
    def differing(one, other):
        return sum(bin(a ^ b).count("1") for a, b in zip(one, other, strict=True))

    image = scene(seed)
    brighter = image.point(lambda value: min(255, int(0.8 * value) + 20))
    for copy in (image.resize((80, 60)), brighter, image.convert("L")):
        assert differing(difference_hash(image), difference_hash(copy)) <= MOST_BITS
    assert differing(difference_hash(image), difference_hash(scene(seed + 50))) > 3 * MOST_BITS

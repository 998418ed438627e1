"""Format `webdataset`: tar archives with KEY.json (the row of an image) and KEY.png (its segment ids)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from ...runtime.files import safe_name
from ...runtime.text import json_text
from ...structures.annotations import ids_to_rgb
from ..rows import Row, id_map
from .archives import archive
from .base import Provenance, ShardFormat


def write(rows: Iterable[Row], stem: Path, origin: Provenance) -> None:
    """Write STEM.tar.

    KEY.json is the row with its masks. KEY.png has the `segment_id` of each pixel as R + 256 G + 65536 B, 0 where there
    is none. Where objects overlap, the best one is on top.

    Raises:
        M2FError: the file cannot be written.
    """
    with archive(stem.with_name(f"{stem.name}.tar")) as shard:
        for row in rows:
            key = key_of(row["id"])
            shard.add(f"{key}.json", json_text(row).encode())
            shard.add_png(f"{key}.png", Image.fromarray(ids_to_rgb(id_map(row))))


def key_of(id: str) -> str:
    """Return the key of an image: its name with its folders. Readers end the key at the first dot of the file's name.

    A name with dots gets "_" in their place, and a hash, so that keys stay apart.
    """
    path = PurePosixPath(safe_name(id))
    if "." not in path.name:
        return str(path)
    mark = hashlib.sha256(path.name.encode()).hexdigest()[:8]
    return str(path.with_name(f"{path.name.replace('.', '_')}-{mark}"))


FORMAT = ShardFormat(write, (".tar",))

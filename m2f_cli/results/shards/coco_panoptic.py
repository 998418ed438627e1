"""Format `coco-panoptic-shards`: a COCO panoptic JSON and a tar of its PNGs for each group of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...runtime.files import write_json
from ..rows import Row, result_of
from ..types import PanopticMap
from ..writers import coco_categories, panoptic_entry, panoptic_image
from .archives import archive
from .base import Provenance, ShardFormat


def write(rows: Iterable[Row], stem: Path, origin: Provenance) -> None:
    """Write STEM.tar with the PNGs and STEM.json, whose entries are those of the format coco-panoptic.

    Raises:
        M2FError: a file cannot be written.
    """
    lists: dict[str, list[Any]] = {"images": [], "annotations": []}
    with archive(stem.with_name(f"{stem.name}.tar")) as shard:
        for row in rows:
            result = result_of(row, origin.categories)
            assert isinstance(result, PanopticMap)
            file_name = (Path(row["id"]).parent / Path(row["uri"]).name).as_posix()
            entry = panoptic_entry(result, row["id"], file_name)
            for key, entries in lists.items():
                entries.append(entry[key])
            shard.add_png(entry["annotations"]["file_name"], panoptic_image(result))
    info = {key: value for key, value in origin.facts().items() if key != "categories"}
    write_json(
        stem.with_name(f"{stem.name}.json"), {"info": info, **lists, "categories": coco_categories(origin.categories)}
    )


FORMAT = ShardFormat(write, (".tar", ".json"), prefix="panoptic-", tasks=("panoptic",))

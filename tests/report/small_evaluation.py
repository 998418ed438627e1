"""A folder of an evaluation of a few small images, as `m2f eval` leaves it, without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.test_run import records
from helpers.fake_segmenter import CATEGORIES, FakeSegmenter

from m2f_cli import plugins
from m2f_cli.evaluation import report
from m2f_cli.evaluation.run import EvalRun, header_of, run

METRICS = ("pq", "pq-errors", "calibration", "ap", "miou")


def evaluate(
    folder: Path,
    *,
    count: int = 6,
    metrics: Sequence[str] = METRICS,
    categories=CATEGORIES,
    names: Sequence[str] = (),
    edge: int = 64,
    moved: int = 0,
) -> Path:
    """Evaluate `count` scenes whose annotation is moved by some rows, and by `moved` more."""
    segmenter = FakeSegmenter()
    segmenter.categories = categories
    items = records(count)
    for item, name in zip(items, names, strict=False):
        item.name = name
    for item in items:
        item.moved += moved
    chosen = {name: plugins.get("metrics", name)(categories) for name in metrics}
    header = header_of(segmenter, [item.name for item in items], metrics=sorted(chosen))
    result = run(EvalRun(folder, segmenter, items, chosen, header, thumbnails=edge))
    published = report.PublishedComparison("pq", 52.0, 80.0, 28.0, "single scale", "A paper, 2022", True, False)
    tree = report.document(
        result,
        model={"name": "fake", "source": "fake.safetensors", "weights": "12ab"},
        data={
            "name": "scenes",
            "format": "coco",
            "folder": None,
            "split": "val",
            "pictures": count,
            "full_split": None,
        },
        settings={"thresholds": {"object_threshold": 0.4}, "tta": False},
        published=[published],
        notes=["A remark."],
    )
    report.write(folder, tree)
    environment = {"m2f": "0.1.0", "torch": "2.9", "command": ["m2f", "eval", "--model", "a b"]}
    (folder / "env.json").write_text(json.dumps(environment))
    return folder

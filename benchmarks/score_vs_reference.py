"""Scoring predictions, ours beside the published tools' way, same predictions, same digits, one process.

    python benchmarks/score_vs_reference.py [--data DIR] [--rounds 7] [--json FILE]

Data is a COCO panoptic folder with instances (annotations/, panoptic_val2017/, val2017/); predictions are its val
annotations, moved and damaged. Rounds alternate between the sides; figures are medians.

PQ: panopticapi cannot be installed from a registry, so `published_pq` below states its algorithm again: both PNGs
through PIL, and np.unique over all pixels. It knows files alone; "results in memory" compares with that, and the row
after it with the same statement given maps in memory. "from PNG files" is `m2f eval --predictions`, everything in it.
AP: pycocotools itself, from results in memory to the figures, beside our metric with each engine.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VOID, OFFSET = 0, 256**3
STATS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
PACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_panoptic_160"


# --- the published way ------------------------------------------------------------------------------------------------


def ids_of_png(path: Path) -> np.ndarray:
    colours = np.array(Image.open(path), dtype=np.uint32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def published_image(stats: dict[int, list[float]], true_ids, found_ids, true: dict, found: dict) -> None:
    """panopticapi's rules for one image: adds to stats {category: [iou, tp, fp, fn]}."""
    labels, counts = np.unique(found_ids, return_counts=True)
    found_area = {int(label): int(count) for label, count in zip(labels, counts, strict=True) if label in found}
    labels, counts = np.unique(true_ids, return_counts=True)
    true_area = {int(label): int(count) for label, count in zip(labels, counts, strict=True)}
    pairs, counts = np.unique(true_ids.astype(np.uint64) * OFFSET + found_ids.astype(np.uint64), return_counts=True)
    shared = {(int(p) // OFFSET, int(p) % OFFSET): int(c) for p, c in zip(pairs, counts, strict=True)}
    matched_true, matched_found = set(), set()
    for (t, f), overlap in shared.items():
        if t not in true or f not in found or true[t]["iscrowd"] or true[t]["category_id"] != found[f]["category_id"]:
            continue
        iou = overlap / (found_area[f] + true_area[t] - overlap - shared.get((VOID, f), 0))
        if iou > 0.5:
            stats[true[t]["category_id"]][0] += iou
            stats[true[t]["category_id"]][1] += 1
            matched_true.add(t)
            matched_found.add(f)
    crowds = {}
    for t, segment in true.items():
        if t not in matched_true and segment["iscrowd"]:
            crowds[segment["category_id"]] = t
        elif t not in matched_true:
            stats[segment["category_id"]][3] += 1
    for f, segment in found.items():
        if f in matched_found:
            continue
        excused = shared.get((VOID, f), 0) + shared.get((crowds.get(segment["category_id"]), f), 0)
        if not excused / found_area[f] > 0.5:
            stats[segment["category_id"]][2] += 1


def published_pq(images, categories: dict[int, bool]) -> dict[str, Any]:
    """
    Args:
        images: (true ids, found ids, true segments, found segments) each.
        categories: id → whether it is a thing.
    """
    stats = {category: [0.0, 0, 0, 0] for category in categories}
    for true_ids, found_ids, true, found in images:
        published_image(stats, true_ids, found_ids, *({s["id"]: s for s in each} for each in (true, found)))
    figures: dict[str, Any] = {"counts": {category: tuple(row[1:]) for category, row in stats.items()}}
    for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
        totals, count = [0.0, 0.0, 0.0], 0
        for category, (iou, tp, fp, fn) in stats.items():
            if categories[category] in wanted and tp + fp + fn:
                weight = tp + 0.5 * fp + 0.5 * fn
                count += 1
                row = iou / weight, iou / tp if tp else 0, tp / weight
                totals = [a + b for a, b in zip(totals, row, strict=True)]
        figures |= {key + suffix: 100 * (total / count) for key, total in zip(("pq", "sq", "rq"), totals, strict=True)}
    return figures


# --- predictions ------------------------------------------------------------------------------------------------------


def moved(ids_HW: np.ndarray, number: int) -> np.ndarray:
    """A prediction made of an annotation: moved by a few pixels, with a ragged block of another segment."""
    rng = np.random.default_rng(number)
    ids_HW = np.roll(ids_HW, tuple(rng.integers(-6, 7, 2)), (0, 1))
    ids = np.unique(ids_HW)
    top, left = (int(rng.integers(0, side // 2)) for side in ids_HW.shape)
    ids_HW[top : top + 60, left : left + 80] = ids[rng.integers(0, len(ids))]
    return ids_HW


def write_predictions(data: Path, folder: Path) -> list[tuple]:
    """PNGs and json of predictions; and for each image its true and found PNG and segments."""
    document = json.loads((data / "annotations" / "panoptic_val2017.json").read_text())
    (folder / "panoptic").mkdir()
    rows, annotations = [], []
    names = [category["id"] for category in document["categories"]]
    for number, record in enumerate(document["annotations"]):
        true_png = data / "panoptic_val2017" / record["file_name"]
        ids_HW = moved(ids_of_png(true_png), number)
        Image.fromarray(np.stack([ids_HW >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)).save(
            folder / "panoptic" / record["file_name"]
        )
        present, rng = set(np.unique(ids_HW).tolist()), np.random.default_rng(number)
        found = [
            {"id": s["id"], "category_id": s["category_id"] if rng.random() < 0.9 else int(rng.choice(names))}
            for s in record["segments_info"]
            if s["id"] in present
        ]
        annotations.append({**record, "segments_info": found})
        rows.append((true_png, folder / "panoptic" / record["file_name"], record["segments_info"], found))
    (folder / "panoptic.json").write_text(json.dumps({**document, "annotations": annotations}))
    return rows


def objects_found(document: dict) -> list[dict]:
    """COCO instance results: three moved copies of each object, with scores."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(document)
        coco.createIndex()
    results, rng = [], np.random.default_rng(0)
    for annotation in coco.dataset["annotations"]:
        for shift in (0, 3, 9) if not annotation["iscrowd"] else ():
            mask_HW = np.roll(coco.annToMask(annotation), (shift, -shift), (0, 1))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "segmentation": coco_mask.encode(np.asfortranarray(mask_HW)),
                    "score": float(np.float32(rng.random())),
                }
            )
    return results


# --- the race ---------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One comparison: `theirs` and `ours` give figures that must be equal."""

    name: str
    theirs: Callable[[], dict]
    ours: Callable[[], dict]
    goal: float | None
    prepare: Callable[[], None] = lambda: None  # before each round, outside the time
    times: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"theirs": [], "ours": []})
    same: bool = True

    def run(self) -> None:
        self.prepare()
        figures = {side: self.timed(side) for side in ("theirs", "ours")}
        shared = figures["theirs"].keys() & figures["ours"].keys()
        self.same &= len(shared) > 8 and all(figures["theirs"][key] == figures["ours"][key] for key in shared)

    def timed(self, side: str) -> dict:
        wall, cpu = time.perf_counter(), time.process_time()
        figures = getattr(self, side)()
        self.times[side].append((time.perf_counter() - wall, time.process_time() - cpu))
        return figures

    def summary(self) -> dict[str, Any]:
        from m2f_cli.benchmark.statistics import ratio, summary

        wall, cpu = ({side: [time[i] for time in times] for side, times in self.times.items()} for i in (0, 1))
        return {
            "name": self.name,
            "theirs_seconds": summary(wall["theirs"])["median"],
            "ours_seconds": summary(wall["ours"])["median"],
            "ratio": ratio(wall["theirs"], wall["ours"])["value"],
            "cpu_ratio": ratio(cpu["theirs"], cpu["ours"])["value"],
            "goal": self.goal,
            "identical": self.same,
        }


def pq_rows(data: Path, folder: Path) -> list[Row]:
    from m2f_cli.data.open_dataset import open_data
    from m2f_cli.evaluation.score_files.score import score
    from m2f_cli.metrics.panoptic_quality import PanopticQuality
    from m2f_cli.results.types import PanopticMap, Segment
    from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation

    files = write_predictions(data, folder)
    categories = open_data(data, "val", task="panoptic").categories
    things, number = {c.id: c.isthing for c in categories}, {c.id: i for i, c in enumerate(categories)}
    maps = [(ids_of_png(t).astype(np.int32), ids_of_png(f).astype(np.int32), *rows) for t, f, *rows in files]
    images = [
        (
            PanopticMap(f.shape, categories, f, [Segment(s["id"], number[s["category_id"]], 1.0, 0) for s in found]),
            PanopticAnnotation(
                t, [AnnotatedSegment(s["id"], number[s["category_id"]], bool(s["iscrowd"])) for s in true]
            ),
        )
        for t, f, true, found in maps
    ]

    def counted(figures: dict) -> dict:
        rows = zip(categories, figures["per_class"].values(), strict=True)
        return {**figures, "counts": {c.id: (row["tp"], row["fp"], row["fn"]) for c, row in rows}}

    def in_memory() -> dict:
        metric = PanopticQuality(categories)
        for result, annotation in images:
            metric.update(result, annotation)
        return counted(metric.compute())

    def from_files() -> dict:
        return counted(score(folder / "panoptic.json", data, ["pq"]).metrics["pq"])

    def published_files() -> dict:
        return published_pq(((ids_of_png(t), ids_of_png(f), *rows) for t, f, *rows in files), things)

    return [
        Row(f"PQ of {len(files)} images, results in memory", published_files, in_memory, 15),
        Row("PQ, both in memory", lambda: published_pq(maps, things), in_memory, None),
        Row("PQ, both from PNG files", published_files, from_files, 2),
    ]


def ap_rows(data: Path) -> list[Row]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from m2f_cli.metrics.average_precision import ENGINES, AveragePrecision
    from m2f_cli.results.types import Instances
    from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation
    from m2f_cli.structures.categories import Category

    document = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    results = objects_found(document)
    categories = tuple(Category(c["id"], c["name"], True, (0, 0, 0)) for c in document["categories"])
    number = {category.id: i for i, category in enumerate(categories)}
    images = []
    for image in document["images"]:
        size, key = (image["height"], image["width"]), image["id"]
        true = [
            AnnotatedObject(number[a["category_id"]], _shape(a["segmentation"]), bool(a["iscrowd"]), a["area"])
            for a in document["annotations"]
            if a["image_id"] == key
        ]
        own = sorted((r for r in results if r["image_id"] == key), key=lambda r: -r["score"])
        images.append(
            (
                Instances(
                    size,
                    categories,
                    np.array([number[r["category_id"]] for r in own], np.int64),
                    np.array([r["score"] for r in own], np.float32),
                    [r["segmentation"] for r in own],
                ),
                InstanceAnnotation(size, true),
            )
        )

    def theirs() -> dict:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset, found = given
            coco.createIndex()
            run = COCOeval(coco, coco.loadRes(found), "segm")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return dict(zip(STATS, (100 * float(value) for value in run.stats), strict=True))

    def ours(engine: str) -> dict:
        metric = AveragePrecision(categories, engine=engine)
        for result, annotation in images:
            metric.update(result, annotation)
        return metric.compute()

    def prepare() -> None:
        given[:] = copy.deepcopy((document, results))  # pycocotools changes what it is given

    given: list[Any] = []
    title = f"AP of {len(results)} objects in {len(images)} images, masks by"
    return [Row(f"{title} {engine}", theirs, lambda engine=engine: ours(engine), 2.5, prepare) for engine in ENGINES]


def _shape(segmentation: Any) -> Any:
    polygons = isinstance(segmentation, list)
    return [np.reshape(polygon, (-1, 2)) for polygon in segmentation] if polygons else segmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PACK, help="a COCO panoptic folder; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*pq_rows(arguments.data, Path(folder)), *ap_rows(arguments.data)]
        for row in rows:
            row.run()
            row.times = {"theirs": [], "ours": []}  # the first round imports and warms up
        for _ in range(arguments.rounds):
            for row in rows:
                row.run()
    from m2f_cli.benchmark import machine as about
    from m2f_cli.runtime.threads import usable_cores

    figures = [row.summary() for row in rows]
    machine = (
        f"{about.cpu_name()}, {usable_cores()} cores, numpy {np.__version__}, {about.allocator()['name']}, "
        f"load {about.load_average()}"
    )
    print(f"{machine}; medians of {arguments.rounds} rounds, wall time; in brackets the ratio of CPU time")
    for f in figures:
        goal = f"goal {f['goal']}x" if f["goal"] else ""
        print(
            f"{f['name']:62} {f['theirs_seconds']:7.3f} s -> {f['ours_seconds']:6.3f} s  {f['ratio']:5.1f}x "
            f"({f['cpu_ratio']:.1f}x)  {goal:10} digits {'identical' if f['identical'] else 'DIFFER'}"
        )
    if arguments.json:
        document = {"machine": machine, "rounds": arguments.rounds, "rows": figures}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    if not all(f["identical"] for f in figures):
        raise SystemExit("some digits differ")


if __name__ == "__main__":
    main()

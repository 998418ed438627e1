"""Targets of configurations, journals, results, files of runs and lists."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from helpers import fake_segmenter, folders
from helpers.fake_segmenter import CATEGORIES
from helpers.parts import tiny_config

from m2f_cli import plugins
from m2f_cli.commands.data.reading import parse_label_map
from m2f_cli.config import presets, published
from m2f_cli.config.schema import Config
from m2f_cli.data.loader import Batch
from m2f_cli.data.transforms import build_transforms
from m2f_cli.dataset_tools.prepare.journal import PrepareJournal
from m2f_cli.errors import M2FError
from m2f_cli.evaluation import journal
from m2f_cli.evaluation.compare import compare
from m2f_cli.inference import journal as predict_journal
from m2f_cli.inference.shards import Shards, formats_for
from m2f_cli.inference.sources import expand
from m2f_cli.loss.criterion import make_criterion
from m2f_cli.model.build import build, build_shapes
from m2f_cli.results.rows import row_of
from m2f_cli.results.shards.base import Provenance
from m2f_cli.runtime import documents
from m2f_cli.runtime.locks import locked
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation
from m2f_cli.structures.categories import load_class_table
from m2f_cli.structures.targets import Target as TrainTarget
from m2f_cli.training.loggers import JsonLinesLogger
from m2f_cli.training.loop import NonFiniteStep
from m2f_cli.training.optimizer import make_optimizer
from m2f_cli.training.options import stored_options
from m2f_cli.training.replay import dump_non_finite_step, look_at
from m2f_cli.training.schedule import factor
from m2f_cli.training.visualise import draw_curves

from .harness import Target
from .mutators import RAW_YAML, TEXTS, file_mutants, folder_mutants, mutate_lines, mutate_tree, value

MOST_BUILT = 20_000_000  # parameters of a network that is built with numbers; larger ones get shapes alone
SHARDS = ["parquet", "webdataset", "coco-panoptic-shards"]
FORMATS = ["coco-panoptic", "coco-instance"]
HEAD = {"model": "tiny", "task": "panoptic", "formats": [*FORMATS, *SHARDS], "threshold": 0.5}


def each(*calls: Callable[[], object]) -> None:
    """Make all calls, and raise the first error at the end."""
    errors = []
    for call in calls:
        try:
            call()
        except M2FError as error:
            errors.append(error)
    if errors:
        raise errors[0]


NAMED = "metric|state of"
PARTS = r"configuration of \w+|There is no [\w ]+ named|augmentation step \w+"  # named by errors of networks


# --- configurations ---------------------------------------------------------------------------------------------------


def _settings() -> Config:
    return presets.load("tiny").model_copy(update={"model": tiny_config()})


def _configurations() -> dict[str, bytes]:
    names = ("tiny", "small-panoptic", "mpformer-coco-instance-r50-12ep", "maskformer-ade20k-r50", "ade20k-swin-t")
    files = {f"{name}.yaml": presets.dump(presets.load(name)).encode() for name in names}
    files["network.yaml"] = presets.dump(_settings()).encode()
    files["extends.yaml"] = b"extends: [recipes/small, backbones/swin-t]\nsummary: x\ntrain: {iterations: 5}\n"
    return files


def make_parts(settings: Config, where: str) -> None:
    """Make what can be made of a configuration without data."""
    presets.refuse_code(settings, where)
    model = build_shapes(settings.model, 5)
    if presets.parse(yaml.safe_load(presets.dump(settings)), where) != settings:
        raise AssertionError("a configuration that is written is not read back")
    if sum(each.numel() for each in model.parameters()) < MOST_BUILT:
        model = build(settings.model, 5)
    if settings.train is None:
        return
    build_transforms(settings.train.augment)
    make_criterion(5, settings.train.loss, None)
    make_optimizer(model, settings.train.optimizer)
    for iteration in (0, settings.train.iterations - 1):
        factor(iteration, settings.train.iterations, settings.train.schedule)


def _pairs(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """Lists of "key=value" of keys that exist and keys that do not."""
    keys, waiting = [], [("", presets.load("tiny").model_dump(mode="json"))]
    while waiting:
        above, node = waiting.pop()
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            keys.append(f"{above}{key}")
            waiting.append((f"{above}{key}.", inner))
    path = folder / "pairs.json"
    while True:
        pairs = []
        for _ in range(rng.choice([1, 1, 2])):
            key = rng.choice(keys)
            if rng.random() < 0.15:
                key = rng.choice([*TEXTS, "model.backbone.name.x", ".", "model."])
            texts = [rng.choice(RAW_YAML), json.dumps(value(rng)), str(value(rng))[:9000], rng.choice(TEXTS)]
            pairs.append(key if rng.random() < 0.02 else f"{key}={rng.choice([*texts, f'{{name: {key}}}'])}")
        path.write_text(json.dumps(pairs))
        yield f"--set {pairs}"[:300], path


def _class_tables() -> dict[str, bytes]:
    rows = [{"id": 7, "name": "road", "isthing": 0, "color": [1, 2, 3]}, {"name": "no", "isthing": True}, {"name": "1"}]
    return {
        "table.yaml": yaml.safe_dump({"source": "x", "ignore_index": 255, "classes": rows}, sort_keys=False).encode(),
        "plain.yaml": b"classes: [{name: cat}, {name: dog}, {name: '3'}]\n",
    }


def _label_map_options(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    path = folder / "options.json"
    while True:
        what, text = mutate_lines(rng, "0=a 1=b,255= 3=4")
        odd = ["1=x", "²=a", "9" * 5000 + "=a", "1=" + "9" * 5000, "٣=a", "1=²", "-1=a", "1=a=b"]
        path.write_text(json.dumps([text, rng.choice(odd)]))
        yield what, path


# --- journals of evaluations ------------------------------------------------------------------------------------------


def _metrics_of_the_scene() -> list[str]:
    return [name for name in plugins.names("metrics") if not name.startswith("cityscapes")]


def _states(number: int) -> dict[str, Any]:
    """Return the states of all metrics after one image."""
    rng = np.random.default_rng(number)
    truth_HW = fake_segmenter.scene_labels(24, 32)
    found_HW = np.where(rng.random(truth_HW.shape) < 0.1, 1, np.roll(truth_HW, number % 3, axis=1)).astype(np.uint8)
    annotation = PanopticAnnotation(truth_HW.astype(np.int32) + 1, [AnnotatedSegment(k + 1, k) for k in range(3)])
    makers = {
        "panoptic": fake_segmenter.panoptic,
        "instance": fake_segmenter.instances,
        "semantic": fake_segmenter.semantic,
    }
    states = {}
    for name in _metrics_of_the_scene():
        part = plugins.get("metrics", name)(CATEGORIES)
        part.update(makers[part.task](found_HW), annotation)
        states[name] = part.state()
    return states


def _evaluations(folder: Path) -> None:
    """Write two evaluations of three images. The classes of run b stand in its results.json alone."""
    classes = [category.to_dict() for category in CATEGORIES]
    for run in ("a", "b"):
        header = {"schema_version": 1, "model": "tiny", **({"categories": classes} if run == "a" else {})}
        lines: list[dict[str, Any]] = [{"header": header}]
        for number in range(3):
            states = _states(number + (run == "b"))
            lines.append({"name": f"img/{number}", "number": number, "seconds": 0.1, "metrics": states})
        lines.insert(2, {"name": "bad", "number": 3, "seconds": 0.1, "error": "no image"})
        folders.write_text(folder / run / "pictures.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        folders.write_json(folder / run / "results.json", {"schema_version": 1, "categories": classes})


def _chosen(path: Path) -> str:
    """Return a metric, another one for another length of the journals."""
    names = _metrics_of_the_scene()
    return names[sum(file.stat().st_size for file in path.glob("*/pictures.jsonl")) % len(names)]


def read_evaluations(path: Path) -> None:
    def summarised(metric: str | None) -> None:
        found = compare(path / "a", path / "b", metric=metric, resamples=3)
        json.dumps(found.to_dict(), allow_nan=False)
        found.summary()
        found.rows()

    def resumed() -> None:
        header = {"schema_version": 1, "model": "tiny", "categories": [each.to_dict() for each in CATEGORIES]}
        journal.check_header(path / "a", header)
        journal.consolidate(path / "a", header)
        with journal.appending(journal.journal_of(path / "a"), header):
            pass
        journal.finished(path / "a")
        for line in journal.read(journal.journal_of(path / "a")):
            states = line.get("metrics")
            for name in _metrics_of_the_scene() if isinstance(states, dict) else ():
                if name in states:
                    metric = plugins.get("metrics", name)(CATEGORIES)
                    metric.restore(states[name])
                    metric.compute()

    each(lambda: summarised(None), lambda: summarised(_chosen(path)), resumed)


def _results(folder: Path) -> None:
    figures = [{"metric": "PQ", "setting": "single scale", "measured": 57.1, "comparable": True, "value": 57.8}]
    model = {"name": "coco-panoptic-swin-l", "source": "coco-panoptic-swin-l (released)"}
    tree = {"model": model, "settings": {"tta": False}, "published": figures, "seconds": 1.5, "device": "cpu"}
    folders.write_json(folder / "eval/x/results.json", tree)
    folders.write_json(
        folder / "bench/x.json", {"model": model, "device": "cpu", **dict.fromkeys(published.COSTS, 1.5)}
    )


def read_results(path: Path) -> None:
    rows = published.lines([presets.load("coco-panoptic-swin-l")], published.measured_in(path))
    json.dumps(published.document(rows), allow_nan=False)
    published.comma_separated(rows)
    published.tables(rows)


# --- files of predictions and trainings -------------------------------------------------------------------------------


def _predictions(folder: Path) -> None:
    lines: list[Any] = [HEAD]
    for number in range(3):
        name = f"img/{number}"
        info = [{"id": 1, "category_id": 3, "score": 0.5, "area": 4}]
        shared = {
            "coco-panoptic": {
                "images": [folders.image_entry(name, f"{name}.jpg")],
                "annotations": [{"image_id": name, "file_name": f"{name}.png", "segments_info": info}],
            },
            "coco-instance": [{"image_id": name, "category_id": 1, "score": 0.5, "segmentation": {}}],
        }
        files = [f"panoptic/{name}.png"]
        folders.write_text(folder / files[0], "x")
        record = {"name": name, "file": f"{name}.jpg", "files": files, "seconds": 0.1}
        row = row_of(fake_segmenter.panoptic(fake_segmenter.scene_labels(8, 8)), name, f"{name}.jpg")
        lines.append({"record": record, "shared": shared, "row": row})
    lines.append({"record": {"name": "bad", "error": "no image", "file": "bad.jpg"}})
    folders.write_text(folder / "journal.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def read_predictions(path: Path) -> None:
    """Go on with a folder of predictions, write its shared files, and erase it."""
    if (path / "journal.jsonl").is_symlink() or (path / "journal.jsonl").exists():
        (path / "journal.jsonl").rename(path / predict_journal.RUN_MARK)

    def resumed() -> None:
        predict_journal.check_folder(path, HEAD["formats"], skip_existing=True, overwrite=False)
        with predict_journal.Journal(path, HEAD) as found:
            for name in list(found.numbers):
                found.is_finished(name, f"{name}.jpg")
            predict_journal.assemble(found, ["img/0", "img/1"], FORMATS, CATEGORIES)
            origin = Provenance("tiny", None, None, "panoptic", {}, CATEGORIES)
            with Shards(found, formats_for(SHARDS, "panoptic"), 2, origin) as shards:
                shards.conclude()

    each(resumed, lambda: predict_journal.erase(path, [path / "input.jpg"]))


def _metrics(folder: Path) -> None:
    rows = [{"kind": "train", "iteration": i, "loss": 5.0 - i / 10, "learning_rate": 1e-4} for i in range(8)]
    rows.insert(4, {"kind": "val", "iteration": 4, "pq": 12.5, "sq": 70.0, "rq": None})
    folders.write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> None:
    def resumed() -> None:
        log = JsonLinesLogger(path / "metrics.jsonl", from_iteration=6)
        log.log("train", 6, {"loss": 1.0})
        log.close()

    each(lambda: draw_curves(path / "metrics.jsonl", path / "curves.png"), resumed)


def _environment() -> dict[str, bytes]:
    options = {"data": "x", "init": "random", "device": "cpu", "workers": 2, "freeze": ["backbone"], "resume": False}
    tree = {"m2f": "1", "torch": "2", "processes": 1, "command": ["m2f"], "options": options, "notes": [], "data": {}}
    return {"env.json": json.dumps(tree).encode()}


def _small_journals(folder: Path) -> None:
    entries = [[f"{i}", {"image_id": i, "segments_info": []}] for i in range(4)]
    folders.write_text(folder / "prepare.jsonl", "".join(json.dumps(row) + "\n" for row in entries))
    folders.write_json(folder / ".lock.json", {"pid": 1, "host": "x", "since": "2024-01-01"})


def read_small_journals(path: Path) -> None:
    def prepared() -> None:
        if (path / "prepare.jsonl").is_symlink() or (path / "prepare.jsonl").exists():
            (path / "prepare.jsonl").rename(path / ".table.json.journal")
        with PrepareJournal(path / "table.json") as found:
            found.append("x", {"a": 1})

    def taken() -> None:
        with locked(path, "A test"):
            pass

    each(prepared, taken)


# --- files of a skipped step ------------------------------------------------------------------------------------------

ODD_TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x.double(),
    lambda x: x.bool(),
    lambda x: x.to(torch.complex64),
    lambda x: x.half() * float("nan"),
    lambda x: x[..., :0],
    lambda x: x.reshape(-1),
    lambda x: x[None],
    lambda x: x.expand(3, *x.shape),
    lambda x: x.long() + 10**12,
    lambda x: -x.long(),
    lambda x: x.to_sparse(),
    lambda x: x.to("meta"),
    lambda x: x.tolist() if x.numel() < 1000 else None,
]


def _replays(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of a skipped step: their values and tensors are changed, or the bytes of the file."""
    torch.manual_seed(0)
    settings, path = _settings(), folder / "trouble_000001.pt"
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :20], masks[1, 20:, :30] = True, True
    target = TrainTarget(torch.tensor([0, 2]), masks, None)
    step = NonFiniteStep(1, {"class": 1.0}, math.nan, [Batch(torch.rand(1, 3, 64, 64), [target], ["a"])])
    dump_non_finite_step(path, step, build(settings.model, 3), settings)
    sample, tree = path.read_bytes(), torch.load(path, weights_only=False)
    while True:
        if rng.random() < 0.3:
            data = bytearray(sample)
            for _ in range(rng.choice([1, 5])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
            yield "bytes", path
            continue
        what, now = _changed_step(rng, tree)
        torch.save(now, path)
        yield what, path


def _changed_step(rng: random.Random, tree: dict[str, Any]) -> tuple[str, Any]:
    small = {key: part for key, part in tree.items() if key != "model"}
    what, now = "", {**tree, "model": dict(tree["model"])}
    if rng.random() < 0.5:
        what, changed = mutate_tree(rng, {**small, "config": json.loads(tree["config"])})
        if not isinstance(changed, dict):
            return what, changed
        if isinstance(changed.get("config"), dict):
            changed["config"] = json.dumps(changed["config"], default=str)
        now = {"model": now["model"], **changed}
    if rng.random() < 0.5 and isinstance(now["model"], dict):
        name = rng.choice(list(tree["model"]))
        now["model"][name] = rng.choice(ODD_TENSORS)(tree["model"][name])
        what += f", {name}"
    if rng.random() < 0.3 or not what:
        now["batches"] = [_odd_batch(rng, tree["batches"][0])]
        what += ", batch"
    return what, now


def _odd_batch(rng: random.Random, batch: dict[str, Any]) -> dict[str, Any]:
    own, key = dict(batch["targets"][0]), rng.choice(["images", "labels", "masks"])
    if key == "images":
        return {**batch, "images": rng.choice(ODD_TENSORS)(batch["images"])}
    own[key] = rng.choice(ODD_TENSORS)(own[key])
    return {**batch, "targets": [own]}


# --- lists ------------------------------------------------------------------------------------------------------------


def _lists(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
    folders.write_random_image(folder / "images/a.jpg")
    sample = f"{folder}/images/a.jpg\n{folder}/images\n\n  {folder}/images/b.jpg\n"
    while True:
        what, text = mutate_lines(rng, sample)
        (folder / "list.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
        yield what, folder / "list.txt"


def read_list(path: Path) -> None:
    lines = documents.read_lines(path)
    each(lambda: list(expand(["-"], lines)), *(lambda line=line: list(expand([line])) for line in lines[:3]))


TARGETS = [
    Target(
        "config yaml",
        file_mutants(_configurations),
        lambda path: make_parts(presets.load(path), str(path)),
        PARTS,
        share=0.1,
    ),
    Target(
        "config --set",
        _pairs,
        lambda path: make_parts(presets.load("tiny", json.loads(path.read_text())), "tiny"),
        f"--set|tiny|{PARTS}",
        share=0.2,
    ),
    Target("config classes", file_mutants(_class_tables), load_class_table),
    Target(
        "config --label-map",
        _label_map_options,
        lambda path: parse_label_map(json.loads(path.read_text())),
        "--label-map",
    ),
    Target(
        "eval journals", folder_mutants(_evaluations, weights={".json": 0.3}), read_evaluations, "metric|state of", 0.4
    ),
    Target("eval results", folder_mutants(_results), read_results),
    Target("predict journals", folder_mutants(_predictions, weights={".png": 0.05}), read_predictions),
    Target("train metrics", folder_mutants(_metrics), read_metrics, share=0.3),
    Target("train env", file_mutants(_environment), stored_options),
    Target("train --replay", _replays, lambda path: look_at(path, torch.device("cpu")), PARTS, share=0.1),
    Target("small journals", folder_mutants(_small_journals), read_small_journals),
    Target("lists", _lists, read_list, "file|folder|pattern"),
]

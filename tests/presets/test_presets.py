"""The shipped presets: each loads, is named by the rule, and carries the figures of the published tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers import facts
from helpers.presets import shipped

from m2f_cli.commands import presets as command
from m2f_cli.config import presets as config

NAME = re.compile(
    r"(?P<dataset>coco|cityscapes|ade20k|mapillary-vistas)(-(?P<task>panoptic|instance|semantic))?"
    r"-(?P<backbone>r50|r101|swin-[tsbl])(-(?P<pretraining>in1k|in22k))?(-(?P<source>paper|mmdet))?"
)
PRETRAINED = {
    "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224",
    "swin-b": "swin_base_patch4_window12_384_22k",
    "swin-l": "swin_large_patch4_window12_384_22k",
    "r50": "torchvision",
    "r101": "torchvision",
}
SWIN = {  # embed_dim, depth of the third stage, first heads, window: docs/methods/published-behaviour.md#swin
    "swin-t": (96, 6, 3, 7),
    "swin-s": (96, 18, 3, 7),
    "swin-b": (128, 18, 4, 12),
    "swin-l": (192, 18, 6, 12),
}
ZOO, MMSEG, MMDET = "Mask2Former model zoo", "MMSegmentation", "MMDetection"
# of the files as re-published in 2023 (pull request 2532 of MMSegmentation); docs/methods/published-behaviour.md has
# none
MMSEG_HASHES = {
    "cityscapes-r50": "ffd9d750",
    "cityscapes-r101": "43e68666",
    "cityscapes-swin-t": "36c59341",
    "cityscapes-swin-s": "9ab177f6",
    "cityscapes-swin-b": "9a86a225",
    "cityscapes-swin-l": "28ad20f1",
    "ade20k-r50": "2d1f55f1",
    "ade20k-r101": "b7135890",
    "ade20k-swin-t": "7d64e5dd",
    "ade20k-swin-s": "e715144e",
    "ade20k-swin-b-in1k": "a4a086d2",
    "ade20k-swin-b-in22k": "7ec0f569",
    "ade20k-swin-l": "7120c214",
}
# They stand for no row of a table; what they are is tested in test_presets_train.py.
UNPUBLISHED = ("small-instance", "small-panoptic", "small-semantic", "tiny", "tiny-mpformer")
# test_presets_<method>.py; the last four are of test_presets_vit.py
ELSEWHERE = ("maskformer-", "mpformer-", "ade20k-swin-l-fapn", "eomt-", "pmt-", "fast-coco-", "fast-small-")
NAMES = tuple(name for name in config.preset_names() if name not in UNPUBLISHED and not name.startswith(ELSEWHERE))
ALL = {name: shipped(name) for name in NAMES}


def test_each_table_has_as_many_presets_as_rows():
    own = [name for name in config.preset_names() if not name.startswith(ELSEWHERE)]
    assert [name for name in own if not config.load(name).published] == [*UNPUBLISHED]
    sources = Counter(preset.published[0].source for preset in ALL.values())
    assert sources == {ZOO: 47, MMSEG: 13, MMDET: 11}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_says_what_is_inside(name):
    said, preset = NAME.fullmatch(name).groupdict(), ALL[name]
    assert preset.name == name
    assert preset.model.method == "mask2former"
    assert said["dataset"] == preset.data.dataset
    unnamed = preset.task == "semantic" and preset.data.dataset in ("cityscapes", "ade20k")
    assert said["task"] == (None if unnamed else preset.task)
    assert said["backbone"] == command.backbone_label(preset)
    source = preset.published[0].source
    assert said["source"] == {ZOO: "paper" if unnamed else None, MMDET: "mmdet", MMSEG: None}[source]
    wide = said["backbone"] == "swin-l" and preset.task != "semantic"
    assert preset.model.decoder.options["num_queries"] == (200 if wide else 100)
    assert ("200 queries" in preset.summary) == wide


@pytest.mark.parametrize("name", NAMES)
def test_backbones_are_the_published_ones(name):
    said, backbone = NAME.fullmatch(name).groupdict(), ALL[name].model.backbone
    in1k = said["pretraining"] == "in1k"
    pretrained = PRETRAINED[said["backbone"]].removesuffix("_22k" if in1k else "")
    assert backbone.options["pretrained"] == pretrained
    if backbone.name == "resnet":
        assert backbone.options["stem"] == "basic"
        assert backbone.options["norm"] == expected_norm(ALL[name])
        return
    options = backbone.options
    assert (options["embed_dim"], options["depths"][2], options["num_heads"][0], options["window_size"]) == SWIN[
        said["backbone"]
    ]
    assert options["depths"] == [2, 2, options["depths"][2], 2]
    assert options["num_heads"] == [options["num_heads"][0] * scale for scale in (1, 2, 4, 8)]
    assert options["drop_path"] == 0.3


def expected_norm(preset):
    """docs/methods/published-behaviour.md#2-1 and #2-6: frozen but for Cityscapes, R101 of ADE20K semantic, and
    MMSegmentation."""
    if preset.published[0].source == MMSEG:
        return "fixed_affine_bn"
    trained = preset.data.dataset == "cityscapes"
    return "sync_bn" if trained or preset.name == "ade20k-r101-paper" else "frozen_bn"


@pytest.mark.parametrize("name", NAMES)
def test_pretraining_is_in_the_name_only_where_there_are_two(name):
    said = NAME.fullmatch(name).groupdict()
    if said["pretraining"]:
        other = {"in1k": "in22k", "in22k": "in1k"}[said["pretraining"]]
        assert name.replace(said["pretraining"], other) in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_extends_a_recipe_and_a_backbone_and_is_short(name):
    text = (config.presets_dir() / f"{name}.yaml").read_text()
    tree = yaml.safe_load(text)
    recipe, backbone = tree["extends"]
    assert recipe.startswith("recipes/")
    assert backbone == f"backbones/{NAME.fullmatch(name)['backbone']}"
    # twice the GPUs, and on COCO 100 epochs, not 50
    longer = {"train"} if "swin-l" in name and ALL[name].published[0].source != MMSEG else set()
    assert set(tree) - {"model"} == {"extends", "summary", "weights", "published"} | longer
    assert set(tree.get("model", {})) <= {"backbone", "decoder"}
    assert set(tree.get("model", {}).get("backbone", {})) <= {"norm", "pretrained"}
    assert len(text.splitlines()) <= 26


def test_every_recipe_and_backbone_is_used_and_is_no_preset():
    files = [path for path in config.presets_dir().rglob("*.yaml") if path.parent.name != "methods"]
    names = {f"{path.parent.name}/{path.stem}" for path in files if path.parent != config.presets_dir()}
    # Presets that others extend.
    assert names == extended(files) - {"tiny", "small-instance", "small-panoptic", "small-semantic"}
    assert not {name.partition("/")[2] for name in names if name.startswith("backbones/")} & set(config.preset_names())
    assert len(config.preset_names()) == len(files) - len(names) == 172


def extended(files) -> set[str]:
    """The names that files extend."""
    trees = [yaml.safe_load(path.read_text()) for path in files]
    bases = [tree.get("extends", []) for tree in trees]
    return {name for names in bases for name in ([names] if isinstance(names, str) else names)}


def test_the_backbones_hold_a_backbone_and_nothing_else():
    for path in (config.presets_dir() / "backbones").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text())
        assert (list(tree), list(tree["model"])) == (["model"], ["backbone"])


def test_no_resolved_preset_has_changed():
    """A change on purpose changes a line of resolved.txt: compare `m2f presets show` before and after."""
    lines = (Path(__file__).parent / "resolved.txt").read_text().splitlines()
    known = dict(line.split() for line in lines)
    presets = {name: config.load(name).model_dump(mode="json", exclude_defaults=True) for name in config.preset_names()}
    found = {name: hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:16] for name, tree in presets.items()}
    assert found == known


@pytest.mark.parametrize("name", NAMES)
def test_dump_and_load_are_inverse(name, tmp_path):
    path = tmp_path / f"{name}.yaml"
    path.write_text(config.dump(ALL[name]))
    assert config.load(path) == ALL[name]


@pytest.mark.parametrize("name", NAMES)
def test_classes_fit_the_task(name):
    from m2f_cli.structures.categories import load_categories

    preset = ALL[name]
    instance = preset.task == "instance"
    count = len(load_categories(preset.data.classes))
    counts = {"coco": (133, 80), "ade20k": (150, 100), "cityscapes": (19, 8), "mapillary-vistas": (65, None)}
    assert count == counts[preset.data.dataset][instance]


# --- inference as published: docs/methods/published-behaviour.md#2-1, #2-2, #2-6 --------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_inference_settings_are_the_published_ones(name):
    preset, backbone = ALL[name], command.backbone_label(ALL[name])
    dataset, task, test = preset.data.dataset, preset.task, preset.test
    big_ade = task != "semantic" or backbone in ("swin-b", "swin-l")
    size = {
        "coco": (800, 1333),
        "cityscapes": (1024, 2048),
        "ade20k": (640, 2560) if big_ade else (512, 2048),
        "mapillary-vistas": (2048, 2048),
    }
    assert (test.resize.short_edge, test.resize.max_edge) == size[dataset]
    tasks = {"panoptic": {"panoptic", "instance", "semantic"}, "instance": {"instance"}, "semantic": {"semantic"}}
    expected = {"panoptic", "semantic"} if name.startswith("mapillary-vistas-panoptic") else tasks[task]
    expected = expected - {"semantic"} if name.endswith("mmdet") else expected
    assert set(test.tasks) == expected
    unpadded = preset.published[0].source == MMSEG and size[dataset] == (640, 2560)
    assert test.size_divisor == (0 if unpadded else 32)
    assert test.object_threshold == (0.0 if dataset == "mapillary-vistas" else 0.8)
    assert (test.overlap_threshold, test.top_k) == (0.8, 100)
    assert preset.input.mean == (123.675, 116.28, 103.53)
    assert preset.input.std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("name", NAMES)
def test_the_heads_are_the_same_everywhere(name):
    model = ALL[name].model
    assert (model.pixel_decoder.name, model.decoder.name) == ("deformable", "masked")
    assert model.pixel_decoder.options == {
        "dim": 256,
        "mask_dim": 256,
        "num_layers": 6,
        "ffn_dim": 1024,
        "num_heads": 8,
        "num_points": 4,
    }
    decoder = model.decoder.options
    assert {**decoder, "num_queries": 0} == {
        "dim": 256,
        "num_queries": 0,
        "num_layers": 9,
        "num_heads": 8,
        "ffn_dim": 2048,
    }


# --- weights and figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_published_files(name):
    preset = ALL[name]
    first, *others = preset.weights
    if preset.published[0].source in (MMSEG, MMDET):
        assert (first.format, first.licence, others) == ("openmmlab", "Apache-2.0", [])
        assert first.url.endswith(f"-{first.hash_prefix}.pth") and len(first.hash_prefix) == 8
        return
    assert (first.format, first.licence, len(first.hash_prefix)) == ("detectron2", "CC-BY-NC-4.0", 6)
    assert first.url.endswith(f"/model_final_{first.hash_prefix}.pkl")
    folder = preset.data.dataset.replace("-", "_")
    assert first.url.startswith(f"https://dl.fbaipublicfiles.com/maskformer/mask2former/{folder}/{preset.task}/")
    hubs = [] if preset.model.backbone.name == "resnet" else [hub_name(preset)]
    assert [source.hub for source in others] == hubs
    assert all("unverified" in source.note for source in others)


def hub_name(preset):
    """docs/methods/published-behaviour.md#7-4: IN21k is named for Swin-B only, which has both."""
    size = {"swin-t": "tiny", "swin-s": "small", "swin-b": "base", "swin-l": "large"}[command.backbone_label(preset)]
    in22k = size == "base" and preset.model.backbone.options["pretrained"].endswith("_22k")
    dataset = {"ade20k": "ade"}.get(preset.data.dataset, preset.data.dataset)
    return f"facebook/mask2former-swin-{size}{'-IN21k' if in22k else ''}-{dataset}-{preset.task}"


def test_hashes_of_mmsegmentation_are_those_of_2023():
    assert {p.name: p.weights[0].hash_prefix for p in ALL.values() if p.published[0].source == MMSEG} == MMSEG_HASHES


def test_no_two_presets_share_weights():
    urls = Counter(source.url or source.hub for preset in ALL.values() for source in preset.weights)
    assert set(urls.values()) == {1}


def zoo_figures(row: dict[str, str]) -> Counter:
    """(metric, setting, value) of one row: figures have columns of their own, or share the column `metrics`."""
    names = {"PQ": "pq", "AP": "ap", "mIoU": "miou", "boundary AP": "boundary_ap", "AP50": "ap50", "mIoU ss": "miou"}
    figures = Counter((names[key], "single scale", float(row[key])) for key in names if key in row)
    if "mIoU ms+flip" in row:
        figures["miou", "multi-scale + flip", float(row["mIoU ms+flip"])] += 1
    metrics = row.get("metrics", "")
    if " / " in metrics or "/ ms" in metrics:
        single, multi = re.findall(r"\d+\.\d+", metrics)
        return Counter([("miou", "single scale", float(single)), ("miou", "multi-scale + flip", float(multi))])
    return figures + Counter(
        (names[part.split()[0]], "single scale", float(part.split()[1])) for part in metrics.split(", ") if part
    )


def test_every_row_of_the_zoo_is_there_once():
    by_hash = {p.weights[0].hash_prefix: p for p in ALL.values() if p.weights[0].format == "detectron2"}
    rows = facts.rows(facts.section("1.1", until="Video"))
    assert sorted(row["hash"] for row in rows) == sorted(by_hash)
    for row in rows:
        preset = by_hash[row["hash"]]
        folder = re.search(r"weight folder (\w+)", row["config"])
        stem = folder[1] if folder else row["config"]
        assert f"/{stem}/" in preset.weights[0].url
        assert Counter((f.metric, f.setting, f.value) for f in preset.published) == zoo_figures(row)
        queries = 200 if "Q200" in row["backbone"] else 100
        assert preset.model.decoder.options["num_queries"] == queries
        label = re.match(r"R\d+|Swin-[TSBL]", row["backbone"])[0].lower()
        assert command.backbone_label(preset) == label
        pretrained = preset.model.backbone.options["pretrained"]
        assert pretrained.endswith("_22k") == ("IN21k" in row["backbone"])


def test_every_row_of_mmsegmentation_is_there_once():
    table, *_ = facts.tables(facts.section("1.3"))
    ours = {p.weights[0].url.split("/")[-2]: p for p in ALL.values() if p.published[0].source == MMSEG}
    assert sorted(row["config"] for row in table) == sorted(ours)
    for row in table:
        preset = ours[row["config"]]
        figures = {figure.metric: figure.value for figure in preset.published}
        assert figures == {
            "miou": float(row["mIoU"]),
            "fps_a100": float(row["fps (A100, bs1)"]),
            "train_memory_mib": float(row["mem MB (GiB)"].split()[0]),
        }
        assert preset.data.dataset in row["config"]
        assert preset.model.backbone.options["pretrained"].endswith("_22k") == ("in22k" in row["Mask2Former"])
        assert f"/{row['config']}_20" in preset.weights[0].url


def test_what_is_unverified_says_so():
    unverified = {(p.name, f.metric, f.setting) for p in ALL.values() for f in p.published if not f.verified}
    assert unverified == {
        ("mapillary-vistas-semantic-r50", "miou", "multi-scale + flip"),
        ("mapillary-vistas-semantic-swin-l", "miou", "multi-scale + flip"),
    }

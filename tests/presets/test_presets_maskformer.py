"""The presets of MaskFormer and its baselines: rows, figures, settings and recipes as
docs/methods/published-behaviour.md#1-2 and #2-4 have them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml
from helpers import facts
from presets.test_presets import PRETRAINED, SWIN, hub_name

from m2f_cli.commands import presets as command
from m2f_cli.config import presets as config
from m2f_cli.config.schema import LossConfig, OptimizerConfig
from m2f_cli.data.transforms import build_transforms
from m2f_cli.structures.categories import load_categories

ALL = {
    name: config.load(name) for name in config.preset_names() if name.startswith("maskformer-") and "-mm" not in name
}  # those of OpenMMLab: test_presets_facts.py
NAME = re.compile(
    r"maskformer-(?P<dataset>ade20k-full|ade20k|coco-stuff-10k|coco|cityscapes|mapillary-vistas)"
    r"(-(?P<task>panoptic|semantic))?-(?P<backbone>r50|r101c?|swin-[tsbl])(-(?P<variant>per-pixel(-plus)?))?"
)
FOLDERS = {  # of the model zoo, in the order of its tables
    "semantic-ade20k": "ADE20K-150",
    "semantic-coco-stuff-10k": "COCO-Stuff-10K",
    "semantic-ade20k-full": "ADE20K-Full",
    "semantic-cityscapes": "Cityscapes",
    "semantic-mapillary-vistas": "Mapillary",
    "panoptic-coco": "COCO",
    "panoptic-ade20k": "ADE20K",
}
JITTER = ("color_jitter", {"brightness": 32, "contrast": [0.5, 1.5], "saturation": [0.5, 1.5], "hue": 18})
DETR_EDGES = list(range(480, 801, 32))


def is_swin(preset) -> bool:
    return preset.model.backbone.name == "swin"


def variant(name: str) -> str | None:
    return NAME.fullmatch(name)["variant"]


# --- rows and figures -------------------------------------------------------------------------------------------------


def test_every_row_of_the_zoo_is_there_once():
    by_hash = {p.weights[0].hash_prefix: p for p in ALL.values()}
    rows = facts.rows(facts.section("1.2"))
    assert sorted(row["hash"] for row in rows) == sorted(by_hash) and len(rows) == len(ALL) == 30
    for row in rows:
        preset = by_hash[row["hash"]]
        single = [("miou", float(row[key])) for key in ("ss", "mIoU") if key in row]
        single += [("pq", float(row["PQ"].strip("*")))] if "PQ" in row else []
        multi = [("miou", float(row["ms+flip"].strip("*")))] if "ms+flip" in row else []
        found = {
            setting: [(f.metric, f.value) for f in preset.published if f.setting == setting]
            for setting in {f.setting for f in preset.published}
        }
        gpus = "64 V100" if preset.name.startswith("maskformer-coco-panoptic") else "8 V100"
        expected = {
            "single scale": single,
            "multi-scale + flip": multi,
            gpus: [("train_memory_mib", float(row["mem"]))],
        }
        assert found == {setting: figures for setting, figures in expected.items() if figures}
        folder = preset.weights[0].url.split("/")[-3]
        assert preset.weights[0].url == (
            f"https://dl.fbaipublicfiles.com/maskformer/{folder}/{row['config']}/model_final_{row['hash']}.pkl"
        )
        assert FOLDERS[folder].startswith(row.get("dataset", FOLDERS[folder]).split(" ")[0])
        label = re.match(r"R\d+c?|Swin-[TSBL]", row["backbone"])[0].lower()
        assert command.backbone_label(preset) == label
        pretrained = preset.model.backbone.options["pretrained"]
        assert pretrained.endswith("_22k") == ("IN21k" in row["backbone"])
        assert (preset.model.pixel_decoder.name == "transformer_fpn") == ("+6Enc" in row["backbone"])
        kind = {"PerPixelBaseline": "per-pixel", "PerPixelBaseline+": "per-pixel-plus"}.get(row.get("model"))
        assert variant(preset.name) == kind


def test_what_is_unverified_says_so():
    unverified = {(p.name, f.metric, f.setting) for p in ALL.values() for f in p.published if not f.verified}
    assert unverified == {("maskformer-mapillary-vistas-semantic-r50", "miou", "multi-scale + flip")}
    assert {f.source for p in ALL.values() for f in p.published} == {"MaskFormer model zoo"}


@pytest.mark.parametrize("name", ALL)
def test_the_name_says_what_is_inside(name):
    said, preset = NAME.fullmatch(name).groupdict(), ALL[name]
    assert (preset.name, preset.model.method) == (name, "maskformer")
    assert preset.data.dataset == said["dataset"]
    named = preset.task == "panoptic" or preset.data.dataset == "mapillary-vistas"
    assert said["task"] == (preset.task if named else None)
    counts = {
        "ade20k-full": 847,
        "ade20k": 150,
        "coco-stuff-10k": 171,
        "coco": 133,
        "cityscapes": 19,
        "mapillary-vistas": 65,
    }
    assert len(load_categories(preset.data.classes)) == counts[preset.data.dataset]


@pytest.mark.parametrize("name", ALL)
def test_weights_are_the_published_files(name):
    first, *others = ALL[name].weights
    assert (first.format, first.licence, len(first.hash_prefix)) == ("detectron2", "CC-BY-NC-4.0", 6)
    hubs = []
    if is_swin(ALL[name]):
        size = hub_name(ALL[name]).split("-")[2]
        hubs = [f"facebook/maskformer-swin-{size}-{'coco' if ALL[name].task == 'panoptic' else 'ade'}"]
    assert [source.hub for source in others] == hubs
    assert all("unverified" in source.note for source in others)


def test_no_two_presets_share_weights():
    urls = Counter(source.url or source.hub for preset in ALL.values() for source in preset.weights)
    assert set(urls.values()) == {1}


@pytest.mark.parametrize("name", ALL)
def test_a_preset_extends_a_recipe_and_a_backbone_and_is_short(name):
    text = (config.presets_dir() / f"{name}.yaml").read_text()
    tree = yaml.safe_load(text)
    recipe, backbone = tree["extends"]
    assert recipe.startswith("recipes/maskformer-")
    assert backbone.startswith("backbones/") and f"-{backbone.removeprefix('backbones/')}" in name
    longer = {"train"} if name == "maskformer-coco-panoptic-swin-l" else set()
    assert set(tree) - {"model"} == {"extends", "summary", "weights", "published"} | longer
    assert len(text.splitlines()) <= 26


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_backbones_are_the_published_ones(name):
    backbone, label = ALL[name].model.backbone, NAME.fullmatch(name)["backbone"]
    options = backbone.options
    if label == "r101c":
        assert (options["depth"], options["stem"], options["stem_channels"]) == (101, "deeplab", 128)
        assert (options["norm"], options["pretrained"]) == ("frozen_bn", "R-103")
        return
    assert options["pretrained"] == PRETRAINED[label]
    if backbone.name == "resnet":
        assert (options["stem"], options["norm"]) == ("basic", "frozen_bn")
        return
    found = options["embed_dim"], options["depths"][2], options["num_heads"][0], options["window_size"]
    assert found == SWIN[label] and options["drop_path"] == 0.3


@pytest.mark.parametrize("name", ALL)
def test_heads_are_the_published_ones(name):
    model, kind = ALL[name].model, variant(name)
    encoder = {"num_layers": 6, "num_heads": 8, "ffn_dim": 2048, "dropout": 0.1}
    has_encoder = ALL[name].task == "panoptic" and not is_swin(ALL[name])
    assert model.pixel_decoder.name == ("transformer_fpn" if has_encoder else "fpn")
    assert model.pixel_decoder.options == {"dim": 256, "mask_dim": 256, **(encoder if has_encoder else {})}
    shared = {"dim": 256, "num_layers": 6, "num_heads": 8, "ffn_dim": 2048, "dropout": 0.1}
    enforced = {"enforce_input_proj": True} if ALL[name].task == "panoptic" and is_swin(ALL[name]) else {}
    expected = {
        None: ("plain", {"num_queries": 100, **shared, **enforced}),
        "per-pixel": ("per_pixel", {}),
        "per-pixel-plus": ("per_pixel_plus", shared),
    }
    assert (model.decoder.name, model.decoder.options) == expected[kind]


@pytest.mark.parametrize("name", ALL)
def test_inference_settings_are_the_published_ones(name):
    preset, test = ALL[name], ALL[name].test
    dataset = preset.data.dataset
    big = (is_swin(preset) and name[-1] in "bl") or preset.task == "panoptic" or dataset == "coco-stuff-10k"
    size = {"cityscapes": (1024, 2048), "mapillary-vistas": (2048, 2048), "coco": (800, 1333)}
    assert (test.resize.short_edge, test.resize.max_edge) == size.get(dataset, (640, 2560) if big else (512, 2048))
    assert test.tasks == (("panoptic", "semantic") if preset.task == "panoptic" else ("semantic",))
    assert test.size_divisor == (0 if dataset == "coco" else 32)
    assert test.object_threshold == (0.7 if name.startswith("maskformer-ade20k-panoptic") else 0.8)
    assert test.overlap_threshold == 0.8
    assert test.semantic_scores == ("logits" if variant(name) else "probabilities")
    assert test.only_sure_pixels == bool(variant(name))
    assert preset.input.mean == (123.675, 116.28, 103.53) and preset.input.std == (58.395, 57.12, 57.375)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_optimiser_and_loss(name):
    train, swin = ALL[name].train, is_swin(ALL[name])
    assert train.optimizer == OptimizerConfig(
        learning_rate=6e-5 if swin else 1e-4,
        weight_decay=0.01 if swin else 1e-4,
        norm_weight_decay=0.0,
        embedding_weight_decay=0.0,
        backbone_multiplier=1.0 if swin else 0.1,
        clip_norm=0.01,
    )
    if variant(name):
        assert (train.loss.masks, train.loss.class_weight) == ("per_pixel", 1.0)
    else:
        assert train.loss == LossConfig(
            masks="full", mask_loss="focal", class_weight=1.0, mask_weight=20.0, dice_weight=1.0, no_object_weight=0.1
        )
    assert train.precision == "fp32" and not train.drop_empty and train.group_by_aspect
    assert len(build_transforms(train.augment)) == len(train.augment)


@pytest.mark.parametrize("name", ALL)
def test_schedules_are_the_published_ones(name):
    preset, schedule = ALL[name], ALL[name].train.schedule
    lengths = {
        "ade20k-full": (200000, 16),
        "coco-stuff-10k": (60000, 32),
        "coco": (554400, 64),
        "cityscapes": (90000, 16),
        "mapillary-vistas": (300000, 16),
        "ade20k": (720000, 16) if preset.task == "panoptic" else (160000, 16),
    }
    assert (preset.train.iterations, preset.train.batch) == lengths[preset.data.dataset]
    if preset.data.dataset == "coco":
        assert (schedule.name, schedule.steps, schedule.gamma) == ("step", (369600,), 0.1)
    else:
        assert (schedule.name, schedule.power) == ("poly", 0.9)
    assert (schedule.warmup_iterations, schedule.warmup_factor) == ((1500, 1e-6) if is_swin(preset) else (0, 1.0))


@pytest.mark.parametrize("name", ALL)
def test_augmentations_are_the_published_ones(name):
    preset = ALL[name]
    steps = [(step.name, step.options) for step in preset.train.augment]
    if preset.data.dataset == "coco":
        longest = 1000 if name.endswith("swin-l") else 1333
        crop = {"p": 0.5, "short_edges": [400, 500, 600], "min_size": 384, "max_size": 600}
        assert steps == [
            ("flip", {"p": 0.5}),
            ("sometimes_crop", crop),
            ("resize_choice", {"short_edges": DETR_EDGES, "max_edge": longest}),
        ]
        return
    base, crop = {"cityscapes": (1024, (512, 1024)), "mapillary-vistas": (2048, (1280, 1280))}.get(
        preset.data.dataset, (preset.test.resize.short_edge, (preset.test.resize.short_edge,) * 2)
    )
    last = 15 if preset.data.dataset == "coco-stuff-10k" else 20
    edges = [int(base * k / 10) for k in range(5, last + 1)]
    resize = {"short_edges": edges, "max_edge": 4 * base}
    window = {"height": crop[0], "width": crop[1], "category_max_area": 1.0}
    pad = [] if preset.data.dataset == "cityscapes" else [("pad", {"size": crop[0], "value": 128})]
    assert steps == [("resize_choice", resize), ("crop", window), JITTER, ("flip", {"p": 0.5}), *pad]

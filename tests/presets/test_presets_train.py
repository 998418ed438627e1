"""How the presets train: the numbers of docs/methods/published-behaviour.md#2-1, #2-2 and #2-6, and the small preset
that no table has."""

from __future__ import annotations

import re

import pytest
from helpers import facts
from helpers.presets import shipped

from m2f_cli.config import presets as config
from m2f_cli.config.schema import LossConfig, OptimizerConfig
from m2f_cli.data.synthetic.scenes import CATEGORIES
from m2f_cli.data.transforms import build_transforms
from m2f_cli.structures.categories import load_categories

ALL = {name: shipped(name) for name in config.preset_names()}
NAMES = [name for name, preset in ALL.items() if preset.published and preset.model.method == "mask2former"]
JITTER = {"brightness": 32, "contrast": [0.5, 1.5], "saturation": [0.5, 1.5], "hue": 18}
EDGES = {base: [int(base * k / 10) for k in range(5, 21)] for base in (512, 640, 1024, 2048)}


def is_mmdet(preset) -> bool:
    return preset.published[0].source == "MMDetection"


def is_mmseg(preset) -> bool:
    return preset.published[0].source == "MMSegmentation"


def steps(preset) -> dict[str, dict]:
    return {step.name: step.options for step in preset.train.augment}


def size_of(preset) -> tuple[int, int, tuple[int, int]]:
    """(base of the short edges, longest edge, crop) of docs/methods/published-behaviour.md#2-2."""
    if preset.data.dataset == "cityscapes":
        return 1024, 4096, (512, 1024)
    if preset.data.dataset == "mapillary-vistas":
        return 2048, 8192, (1024, 1024)
    backbone = preset.model.backbone
    large = backbone.name == "swin" and backbone.options["embed_dim"] >= 128
    edge = 640 if large or preset.task != "semantic" else 512
    return edge, 4 * edge, (edge, edge)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_recipes_share(name):
    train = ALL[name].train
    assert train.batch == 16 and train.checkpoint_every == 5000
    assert train.optimizer == OptimizerConfig(
        learning_rate=1e-4,
        weight_decay=0.05,
        norm_weight_decay=0.0,
        embedding_weight_decay=0.0,
        backbone_multiplier=0.1,
        clip_norm=0.01,
    )
    assert train.loss == LossConfig(
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
        num_points=12544,
        oversample_ratio=3.0,
        importance_ratio=0.75,
    )
    assert train.schedule.warmup_iterations == 0  # COCO's is 10 iterations at factor 1
    assert (train.ema_decay, train.repeat_factor_threshold, train.class_weights) == (0.0, 0.0, ())


@pytest.mark.parametrize("name", NAMES)
def test_how_long_and_how(name):
    preset, train = ALL[name], ALL[name].train
    dataset = preset.data.dataset
    longer = dataset == "coco" and "swin-l" in name
    iterations = {
        "coco": 737500 if longer else 368750,
        "cityscapes": 90000,
        "ade20k": 160000,
        "mapillary-vistas": 300000,
    }
    assert train.iterations == iterations[dataset]
    if dataset == "coco":
        assert (train.schedule.name, train.schedule.gamma) == ("step", 0.1)
        assert train.schedule.steps == ((655556, 710184) if longer else (327778, 355092))
    else:
        assert (train.schedule.name, train.schedule.power, train.schedule.steps) == ("poly", 0.9, ())
    assert train.precision == ("fp32" if is_mmseg(preset) or is_mmdet(preset) else "fp16")
    assert train.drop_empty == (preset.task == "instance")
    assert train.group_by_aspect == (not is_mmseg(preset))
    assert train.eval_every == (0 if dataset == "mapillary-vistas" else 5000)


@pytest.mark.parametrize("name", [name for name in NAMES if ALL[name].data.dataset == "coco"])
def test_large_scale_jitter(name):
    expected = {
        "flip": {"p": 0.5},
        "large_scale_jitter": {"size": 1024, "min_scale": 0.1, "max_scale": 2.0},
        "fixed_crop": {"size": 1024, "pad_value": 128},
    }
    if ALL[name].task == "instance":
        expected["drop_vanished"] = {}
    if is_mmdet(ALL[name]):
        jitter = {**expected["large_scale_jitter"], "resampling": "opencv"}
        crop = {"height": 1024, "width": 1024, "category_max_area": 1.0}
        expected = {
            "flip": {"p": 0.5},
            "large_scale_jitter": jitter,
            "crop": crop,
            "pad": {"size": 1024, "value": "mean"},
            "drop_vanished": {},
        }
    assert [*steps(ALL[name]).items()] == [*expected.items()]


@pytest.mark.parametrize("name", [name for name in NAMES if ALL[name].data.dataset != "coco"])
def test_resize_crop_and_colours(name):
    preset, found = ALL[name], steps(ALL[name])
    base, longest, (height, width) = size_of(preset)
    resize = {"short_edges": EDGES[base], "max_edge": longest}
    crop = {"height": height, "width": width, "category_max_area": 0.75 if is_mmseg(preset) else 1.0}
    square = height == width
    if is_mmseg(preset):
        pad = {"size": height if square else [height, width], "value": "mean"}
        expected = [
            ("resize_choice", {**resize, "resampling": "opencv"}),
            ("crop", crop),
            ("flip", {"p": 0.5}),
            ("color_jitter", JITTER),
            ("pad", pad),
        ]
    else:
        expected = [("resize_choice", resize), ("crop", crop), ("color_jitter", JITTER), ("flip", {"p": 0.5})]
        expected += [("pad", {"size": height, "value": 128})] if square else []  # Cityscapes pads nothing
    assert [*found.items()] == expected


def test_the_short_edges_are_those_of_the_facts():
    text = re.sub(r"\s+", " ", facts.section("2.2"))
    for start, base in {"Cityscapes": 1024, "ADE semantic 512": 512, "Mapillary": 2048}.items():
        listed = re.search(rf"- {start}: `[^`]*`[^:]*: ((?:\d+, ){{15}}\d+); max (\d+)", text)
        assert [int(edge) for edge in listed[1].split(", ")] == EDGES[base]
        presets = [p for n, p in ALL.items() if n in NAMES and p.data.dataset != "coco" and size_of(p)[0] == base]
        assert presets and {size_of(preset)[1] for preset in presets} == {int(listed[2])}
    assert "320..1280 step 64; max 2560" in text and EDGES[640] == list(range(320, 1281, 64))


def test_the_iterations_are_those_of_the_facts():
    schedules, *_ = facts.tables(facts.section("2.2"))
    wanted = {
        "COCO panoptic 50ep": "coco-panoptic-r50",
        "COCO panoptic Swin-L": "coco-panoptic-swin-l",
        "Cityscapes pan/inst/sem": "cityscapes-r50-paper",
        "ADE semantic 512": "ade20k-r50-paper",
        "ADE semantic 640": "ade20k-swin-b-in1k-paper",
        "ADE panoptic / instance": "ade20k-panoptic-r50",
        "Mapillary pan/sem": "mapillary-vistas-panoptic-r50",
    }
    for start, name in wanted.items():
        [row] = [row for row in schedules if row["family"].startswith(start)]
        assert ALL[name].train.iterations == int(row["it"])
        marks = re.search(r"@(\d+), (\d+)", row["schedule"])
        assert ALL[name].train.schedule.steps == (tuple(map(int, marks.groups())) if marks else ())


@pytest.mark.parametrize("name", ALL)
def test_every_augmentation_can_be_built(name):
    assert len(build_transforms(ALL[name].train.augment)) == len(ALL[name].train.augment)


# --- the small one ----------------------------------------------------------------------------------------------------


def test_tiny_stands_for_itself():
    tiny = ALL["tiny"]
    assert (tiny.weights, tiny.published, tiny.data.dataset) == ((), (), "synthetic")
    assert load_categories(tiny.data.classes) == CATEGORIES
    assert tiny.model.backbone.options.get("pretrained") is None and tiny.train.optimizer.backbone_multiplier == 1.0


def test_tiny_is_small():
    import torch

    from m2f_cli.model.build import build

    tiny = ALL["tiny"]
    model = build(tiny.model, len(CATEGORIES)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    with torch.inference_mode():
        prediction = model(torch.zeros(1, 3, 64, 96))
    assert len(prediction.layers) == 4 and prediction.last.class_logits_BQK.shape == (1, 12, len(CATEGORIES) + 1)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_small_presets_differ_in_their_task_alone(task):
    small, common = ALL[f"small-{task}"], ALL["small-panoptic"]
    assert (small.task, small.train, small.input) == (task, common.train, common.input)
    assert task in small.test.tasks and small.model.backbone == common.model.backbone
    assert build_transforms(small.train.augment)

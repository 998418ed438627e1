"""Presets of EoMT and PMT: each published row, with its recipe, test settings, weights and licence (vit_rows.yaml)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.golden_files import read_list
from helpers.presets import shipped

from m2f_cli.config import presets as config
from m2f_cli.model.build import build_shapes
from m2f_cli.structures.categories import load_categories
from m2f_cli.training.optimizer import settings
from m2f_cli.weights.key_tables import TABLES

ROWS = Path(__file__).with_name("vit_rows.yaml")
NAMES = tuple(name for name in config.preset_names() if name.startswith(("eomt-", "pmt-")))
ALL = {name: shipped(name) for name in NAMES}
SIZES = {
    "small": ("s", 12, 384, 6),
    "base": ("b", 12, 768, 12),
    "large": ("l", 24, 1024, 16),
    "giant": ("g", 40, 1536, 24),
}
# 7B: queries, blocks and names are unknown. The others are videos, and a comparison without weights.
LEFT_OUT = ("eomt-7b-coco-panoptic-640", "reference-vit-adapter-7b-mask2former")
# Class numbers of stuff in ADE20K panoptic.
STUFF = [
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77),
    *(79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
]


@pytest.fixture(scope="module")
def rows():
    rows = yaml.safe_load(ROWS.read_text())
    return {name_of(row): row for row in rows if row["method"] in ("eomt", "pmt") and row["id"] not in LEFT_OUT}


def name_of(row) -> str:
    """Return the name of the preset of a row: method, data set, task, size, pre-training, side, epochs."""
    task = "" if row["task"] == "semantic" else f"-{row['task']}"
    pretraining = "-dinov3" if row["pretraining"] == "dinov3" and row["method"] == "eomt" else ""
    short = "-12ep" if row["id"].endswith("-1x") else ""
    return f"{row['method']}-{row['dataset']}{task}-{SIZES[row['size']][0]}{pretraining}-{row['input']}{short}"


def test_every_published_row_is_a_preset(rows):
    assert sorted(rows) == sorted(NAMES)


def test_the_rows_are_those_of_the_reference(shared_dir):
    assert ROWS.read_text() == (shared_dir / "reference" / "vit_rows.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_the_row(rows, name):
    row, model = rows[name], ALL[name].model
    letter, depth, _, heads = SIZES[row["size"]]
    assert (model.method, ALL[name].task, ALL[name].data.dataset) == (row["method"], row["task"], row["dataset"])
    timm_name = row.get("backbone_timm", f"vit_{row['size']}_patch16_dinov3_qkvb.").partition(".")[0]
    backbone, decoder = model.backbone.options, model.decoder.options
    assert (model.backbone.name, backbone["model"], backbone["img_size"]) == ("vit_tokens", timm_name, row["input"])
    assert backbone["pretrained"] == "timm" and config.backbone_of(name) == f"{row['pretraining']}-{letter}"
    assert decoder["num_queries"] == row["num_queries"] and decoder["num_blocks"] == row["num_blocks"]
    assert len(decoder["anneal"]) == row["num_blocks"]
    assert len(load_categories(ALL[name].data.classes)) == row["num_classes"]
    if row["method"] == "pmt":
        assert backbone["levels"] == row["levels"] and backbone["norm"] is True and backbone["frozen"] is True
        assert model.pixel_decoder.options["num_levels"] == len(row["levels"])
        assert (decoder["ffn_dim"], decoder["num_heads"]) == (row["decoder_mlp"], heads)
    else:
        first = depth - row["num_blocks"]
        assert (decoder["model"], decoder["first_block"], backbone["levels"]) == (timm_name, first, [first - 1])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if re.search("-(l|g)-", name) else ()) for name in NAMES],
)
def test_the_network_has_as_many_parameters_as_that_of_the_row(rows, name):
    row, network = rows[name], build_shapes(ALL[name].model, rows[name]["num_classes"])
    parameters = list(network.parameters())
    assert sum(each.numel() for each in parameters) / 1e6 == pytest.approx(row["params_m"], abs=0.0051)  # two decimals
    if row["method"] == "pmt":
        trained = sum(each.numel() for each in parameters if each.requires_grad) / 1e6
        assert trained == pytest.approx(row["trained_params_m"], abs=0.0051)


@pytest.mark.parametrize("name", NAMES)
def test_inference_is_the_published_one(rows, name):
    row, test = rows[name], ALL[name].test
    side = row["input"]
    assert (test.tasks, test.pad_value, test.size_divisor) == ((row["task"],), 0, 16)
    assert (test.object_threshold, test.overlap_threshold, test.top_k, test.only_sure_pixels) == (0.8, 0.8, 100, True)
    assert test.resize.rounding == "half_even" and test.resize.resampling == "pillow" and test.resize.max_edge is None
    assert test.canvas == (side, side)
    if row["task"] == "semantic":
        assert test.resize.short_edge == side and test.slide.crop == (side, side) and test.slide.even
    else:
        assert test.resize.fit == side and test.slide is None
    assert ALL[name].input.mean == (123.675, 116.28, 103.53) and ALL[name].input.std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_the_published_one(rows, name):
    row, train = rows[name], ALL[name].train
    per_epoch = {"coco": 7391, "ade20k": 1262, "cityscapes": 186}[row["dataset"]]
    assert train.iterations == row["epochs"] * per_epoch and train.batch == 16 and train.epochs is None
    optimizer, schedule, dinov3 = train.optimizer, train.schedule, row["pretraining"] == "dinov3"
    decays = {optimizer.weight_decay, optimizer.norm_weight_decay, optimizer.embedding_weight_decay}
    assert decays == {0.05} and optimizer.clip_norm == 0.01 and optimizer.backbone_multiplier == 1.0
    assert optimizer.learning_rate == (2e-4 if dinov3 else 1e-4)
    if row["method"] == "pmt" or (dinov3 and row["dataset"] == "ade20k"):
        assert optimizer.layer_decay is None
    else:
        assert optimizer.layer_decay.rate == 0.8
        assert optimizer.layer_decay.whole_blocks == (row["num_blocks"] if dinov3 else 0)
    assert schedule.warmup_first and schedule.warmup_factor == 0
    stages = (schedule.name, schedule.warmup_iterations, schedule.backbone_warmup_iterations)
    expected = ("poly", 2000, 3000) if dinov3 else ("poly", 500, 1000)
    assert stages == (("cosine", 6000, None) if row["method"] == "pmt" else expected)
    loss = train.loss
    assert (loss.class_weight, loss.mask_weight, loss.dice_weight, loss.no_object_weight) == (2, 5, 5, 0.1)
    assert (loss.num_points, loss.oversample_ratio, loss.importance_ratio) == (12544, 3.0, 0.75)
    assert train.precision == "fp16" and train.drop_empty and not train.group_by_aspect


GROUPS = {  # case of the table of parameters: preset, table of names
    "dinov2_large_coco_panoptic": ("eomt-coco-panoptic-l-640", "eomt"),
    "dinov2_small_coco_panoptic_2x": ("eomt-coco-panoptic-s-640", "eomt"),
    "dinov3_large_coco_panoptic": ("eomt-coco-panoptic-l-dinov3-640", "eomt-dinov3"),
    "dinov3_large_ade20k_semantic": ("eomt-ade20k-l-dinov3-512", "eomt-dinov3"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_learning_rate_and_decay_of_each_parameter_are_the_published_ones(case):
    name, table = GROUPS[case]
    preset, published = ALL[name], read_list("v05_optimiser_eomt")["cases"][case]
    network = build_shapes(preset.model, len(load_categories(preset.data.classes)))
    found = settings(network, preset.train.optimizer, in_stages=True)
    expected = {theirs: rest for theirs, _, *rest in published["parameters"]}
    seen = set()
    for ours, setting in found.items():
        names, _ = TABLES[table].find(ours)
        for theirs in names:
            if theirs not in expected:  # the original's keys have no bias
                continue
            group, rate, decay = expected[theirs]
            assert setting.multiplier * preset.train.optimizer.learning_rate == pytest.approx(rate, rel=1e-14), ours
            assert (setting.weight_decay, setting.is_pretrained) == (decay, group == "encoder"), ours
            seen.add(theirs)
    assert seen == expected.keys()


@pytest.mark.parametrize("name", NAMES)
def test_augmentation_is_the_published_one(rows, name):
    row = rows[name]
    steps = {step.name: step.options for step in ALL[name].train.augment}
    side, low = row["input"], 0.5 if row["task"] == "semantic" else 0.1
    in_order = ["flip", "large_scale_jitter", "pad", "crop", "drop_vanished"]
    assert list(steps) == [*(["color_factors"] if row["dataset"] != "coco" else []), *in_order]
    assert steps["large_scale_jitter"] == {"size": side, "min_scale": low, "max_scale": 2.0, "rounding": "down"}
    assert steps["pad"] == {"size": side, "value": 0} and steps["flip"] == {"p": 0.5}
    assert steps["crop"] == {"height": side, "width": side, "category_max_area": 1.0}
    if row["dataset"] != "coco":
        assert steps["color_factors"]["brightness"] == pytest.approx([1 - 32 / 255, 1 + 32 / 255], abs=1e-5)
        assert steps["color_factors"]["hue"] == 18 / 360


# Optimiser steps at which the annealing of each block begins, after its length (docs/methods/plain-vit.md).
COCO3, COCO4 = [14782, 36955, 59128], [14782, 29564, 44346, 59128]
STARTS = {
    "eomt-coco-panoptic-l-640": (14782, COCO4),
    "eomt-coco-panoptic-s-640-12ep": (14782, COCO3),
    "eomt-coco-panoptic-b-640": (29564, [29564, 73910, 118256]),
    "eomt-coco-panoptic-g-1280": (14782, [14782, 25869, 36955, 48042, 59128]),
    "eomt-ade20k-l-512": (6520, [6520, 13040, 19560, 26080]),
    "eomt-ade20k-panoptic-g-640": (6520, [6520, 11410, 16300, 21190, 26080]),
    "eomt-cityscapes-l-1024": (3317, [3317, 6634, 9951, 13268]),
    "eomt-coco-panoptic-b-dinov3-640": (29564, [0, 73910, 118256]),
    "eomt-coco-panoptic-l-dinov3-1280": (14782, [0, 29564, 44346, 59128]),
    "eomt-coco-instance-l-dinov3-640": (14782, COCO4),
    "eomt-ade20k-l-dinov3-512": (3260, [0, 6520, 9780, 13040]),
    "pmt-coco-panoptic-s-640": (14782, [0, 23651, 32520, 41389, 50258, 59128]),
    "pmt-ade20k-l-512": (3365, [0, 5384, 7403, 9422, 11442, 13461]),
}


@pytest.mark.parametrize("name", STARTS)
def test_attention_masks_are_annealed_as_published(name):
    length, starts = STARTS[name]
    total = ALL[name].train.iterations
    assert ALL[name].model.decoder.options["anneal_power"] == 0.9
    for (start, end), expected in zip(ALL[name].model.decoder.options["anneal"], starts, strict=True):
        if expected == 0:
            assert [start, end] == [0, 3000]
            continue
        # The published numbers are shares of the training, rounded by hand: within two steps.
        assert start * total == pytest.approx(expected, abs=2) and end * total == pytest.approx(
            expected + length, abs=2
        )


@pytest.mark.parametrize("name", NAMES)
def test_weights_licences_and_figures_are_those_of_the_row(rows, name):
    row, preset = rows[name], ALL[name]
    figures = [(each.metric, each.value) for each in preset.published]
    expected = [(row["metric"], row["value"]), ("fps_h100", row["fps"])]
    assert figures == [*expected, *([("fps_h100", row["fps_max_autotune"])] if "fps_max_autotune" in row else [])]
    assert {each.source for each in preset.published} == {row["source"]}
    if "weights_hub" not in row:
        assert preset.weights == ()
        return
    first, *others = preset.weights
    assert (first.hub, first.file, first.kind) == (row["weights_hub"], row["weights_file"], row["weights_kind"])
    assert first.base == (None if row["weights_kind"] == "full" else row["backbone_hf"])
    assert first.licence == ("MIT and DINOv3" if row["pretraining"] == "dinov3" else "MIT")
    assert not first.licence_verified and first.format == "original"
    assert [each.hub for each in others] == ([row["transformers_hub"]] if "transformers_hub" in row else [])
    assert all(each.format == "huggingface" for each in others)


def test_stuff_of_ade20k_panoptic_is_that_of_the_original():
    categories = load_categories("ade20k")
    assert [i for i, category in enumerate(categories) if not category.isthing] == STUFF


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_short_and_extends_recipes_and_a_backbone(name):
    text = (config.presets_dir() / f"{name}.yaml").read_text()
    *recipes, backbone = yaml.safe_load(text)["extends"]
    assert all(each.startswith("recipes/") for each in recipes) and backbone.startswith("backbones/dinov")
    assert len(text.splitlines()) <= 30


def test_fast_presets_hand_three_levels_of_the_fpn_to_the_masked_decoder():
    names = [name for name in config.preset_names() if name.startswith("fast-")]
    tasks = ("instance", "panoptic", "semantic")
    assert names == [*(f"fast-coco-{task}-r50" for task in tasks[:2]), *(f"fast-small-{task}" for task in tasks)]
    for name in names:
        model, plain = shipped(name).model, shipped(name.removeprefix("fast-")).model
        assert (model.pixel_decoder.name, model.decoder) == ("fpn", plain.decoder)
        width = plain.pixel_decoder.options["dim"]
        assert model.pixel_decoder.options == {"dim": width, "mask_dim": width, "num_levels": 3}
        assert not shipped(name).weights and not any(each.verified for each in shipped(name).published)

"""All presets against the facts: every row is there, and every network and recipe is the one that was published."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Hashable, Iterable

import numpy as np
import pytest
import torch
from helpers import facts
from helpers.golden_files import read_list
from helpers.presets import shipped

from m2f_cli.config import presets as config
from m2f_cli.config.published import backbone_cell, backbone_label, crop_of, lines
from m2f_cli.config.schema import ModelConfig
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.data.training_set import without_crowds
from m2f_cli.data.transforms import Sample, augment, build_transforms
from m2f_cli.model import build
from m2f_cli.structures.annotations import InstanceAnnotation
from m2f_cli.structures.categories import load_categories
from m2f_cli.training.optimizer import settings
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import DETECTRON2

NAMES = tuple(name for name in config.preset_names() if not name.startswith(("eomt-", "pmt-")))  # test_presets_vit.py
OURS = tuple(name for name in NAMES if name.startswith(("small-", "tiny", "fast-")))  # networks that nobody published
ROWS = tuple(name for name in NAMES if name not in OURS)
load = shipped
GOLDEN = {
    "r50": "r50",
    "r101": "r101",
    "r101c": "ade20k_r101c",
    "swin-t": "swin_tiny",
    "swin-s": "swin_small",
    "swin-b": "swin_base_in21k_384",
    "swin-l": "swin_large_in21k_384",
}
UNSAVED = ("num_batches_tracked", "relative_position_index", "empty_weight")


# --- every row --------------------------------------------------------------------------------------------------------


def test_all_rows_of_the_facts_are_there():
    rows = lines(load(name) for name in ROWS)
    found = {source: sum(row.source == source for row in rows) for source in {row.source for row in rows}}

    def count(number: str, until: str | None = None) -> int:
        return len(facts.rows(facts.section(number, until)))

    also_in_text = {"1.3": 4, "1.4": 2}  # rows of MaskFormer below the tables
    assert found.pop("Mask2Former model zoo") == count("1.1", until="Video")
    assert found.pop("MaskFormer model zoo") == count("1.2")
    assert found.pop("MMSegmentation") == count("1.3") + also_in_text["1.3"]
    assert found.pop("MMDetection") == count("1.4") + also_in_text["1.4"]
    assert found.pop("Mask2Former paper") == 1  # the headline of 57.7
    # one line has two rows (panoptic and instance best), and one value, NuInsSeg's and MaSS13K's, has a row each
    assert sum(found.values()) == sum(row.method == "MP-Former" for row in rows) == count("1.5") + 1


def test_every_row_of_mmdetection():
    table, *_ = facts.tables(facts.section("1.4"))
    assert len(table) == 11
    for row in table:
        size = row["backbone"].lower().replace("-5", "5").replace("-1", "1").split()[0]
        several = size == "swin-b" and row["task"] == "panoptic"
        pretraining = ("-in22k" if "in21k" in row["backbone"] else "-in1k") if several else ""
        preset = load(f"coco-{row['task']}-{size}{pretraining}-mmdet")
        figures = {each.metric: each.value for each in preset.published}
        assert figures == {
            "box_ap": float(row["box"]),
            "ap": float(row["mask"]),
            "train_memory_gib": float(row["mem GB"].split()[0]),
            **({"pq": float(row["PQ"])} if row["PQ"] != "-" else {}),
        }
        assert f"/{row['config']}/{row['config']}_20" in preset.weights[0].url
        long = row["ep"] == "100"
        assert preset.train.iterations == (737500 if long else 368750)
        assert preset.train.schedule.steps == ((655556, 710184) if long else (327778, 355092))
        assert preset.model.decoder.options["num_queries"] == (200 if long else 100)
        assert ("in22k" in backbone_cell(preset)) == ("in21k" in row["backbone"])


def test_rows_of_maskformer_elsewhere():
    text = facts.section("1.3").partition("MMSeg MaskFormer ADE20K")[2]
    found = re.findall(r"(R-\d+|Swin-[TS]) ([\d.]+)(?: GB)? / ([\d.]+)(?: fps)? / ([\d.]+)", text)
    assert len(found) == 4
    for size, *numbers in found:
        preset = load(f"maskformer-ade20k-{size.lower().replace('r-', 'r')}-mmseg")
        values = {each.metric: each.value for each in preset.published}
        wanted = ("train_memory_gib", "fps_v100", "miou")
        assert values == dict(zip(wanted, map(float, numbers), strict=True))
    text = facts.section("1.4").partition("MMDet MaskFormer COCO panoptic")[2]
    for size, numbers in re.findall(r"(R-50|Swin-L) \d+e (PQ [^)]*)\)", text):
        preset = load(f"maskformer-coco-panoptic-{size.lower().replace('r-', 'r')}-mmdet")
        values = [each.value for each in preset.published if each.metric != "train_memory_gib"]
        assert values == [float(number) for number in re.findall(r"\d+\.\d+", numbers)] and len(values) == 5


@pytest.mark.parametrize("name", [name for name in NAMES if "-mm" in name])
def test_rows_of_openmmlab(name):
    preset = load(name)
    [weights] = preset.weights
    assert (weights.format, weights.licence) == ("openmmlab", "Apache-2.0")
    assert weights.url.endswith(f"-{weights.hash_prefix}.pth") and len(weights.hash_prefix) == 8
    assert preset.test.resize.resampling == "opencv" and preset.train.precision == "fp32"
    assert {step.options.get("resampling", "opencv") for step in preset.train.augment} == {"opencv"}
    source = preset.published[0].source
    assert source in ("MMDetection", "MMSegmentation") and source in preset.summary
    twin = load(name.removesuffix("-mmdet").removesuffix("-mmseg"))
    assert preset.model == twin.model and preset.data == twin.data and preset.train.loss == twin.train.loss
    assert preset.test.only_sure_pixels == (preset.model.method == "mask2former")


def test_each_row_says_what_it_ran_on():
    silent = {name for name in ROWS if not load(name).train.hardware}
    assert silent == {"mpformer-mass13k-r50", "mpformer-nuinsseg-panoptic-r50"}
    for name in ROWS:
        preset = load(name)
        paper = preset.published and preset.published[0].source == "Mask2Former model zoo"
        if paper:
            assert preset.train.hardware == ("16 V100" if backbone_label(preset) == "swin-l" else "8 V100")


# --- networks ---------------------------------------------------------------------------------------------------------


@functools.cache
def _built(model_json: str, classes: int) -> torch.nn.Module:
    with torch.device("meta"):
        return build(ModelConfig.model_validate_json(model_json), classes)


def architecture(name: str) -> str:
    """The model of a preset without its number of queries and the weights that it starts from."""
    tree = load(name).model.model_dump(mode="json", exclude={"piloting"})
    tree["decoder"].pop("num_queries", None)
    tree["backbone"].pop("pretrained", None)
    return json.dumps(tree)


def first_of_each(names: Iterable[str], key: Callable[[str], Hashable]) -> list[str]:
    """The first name of each key: the others would only be the same once more."""
    return list({key(name): name for name in reversed(list(names))}.values())[::-1]


def network(name: str) -> torch.nn.Module:
    preset = load(name)
    return _built(preset.model.model_dump_json(), len(load_categories(preset.data.classes)))


@functools.cache
def golden_names(method: str) -> dict[str, dict[str, list[int]]]:
    models = read_list(f"11_param_names_{method}")["models"]
    return {
        key: {name: shape for name, shape, *_ in model["entries"] if not name.endswith(UNSAVED)}
        for key, model in models.items()
    }


def published_names(name: str) -> dict[str, list[int]]:
    """Names and shapes of the published model, with the classes and queries of the preset."""
    preset = load(name)
    lists, size = golden_names(preset.model.method), GOLDEN[backbone_label(preset)]
    heads = size
    if preset.model.method == "maskformer" and preset.task == "semantic" and preset.model.backbone.name == "resnet":
        heads = "ade20k_r50"  # the list has COCO's, with an encoder
    found = {key: shape for key, shape in lists[size].items() if key.startswith("backbone")}
    found |= {key: shape for key, shape in lists[heads].items() if not key.startswith("backbone")}
    classes, queries = len(load_categories(preset.data.classes)), preset.model.decoder.options.get("num_queries")
    counts = {"class_embed": classes + 1, "label_enc": classes, "query_feat": queries, "query_embed": queries}
    return {
        key: [counts.get(key.split(".")[2] if key.count(".") > 2 else "", shape[0]), *shape[1:]]
        for key, shape in found.items()
    }


def without(part: str, names: dict[str, list[int]]) -> dict[str, list[int]]:
    return {name: shape for name, shape in names.items() if part not in name}


@pytest.mark.parametrize("name", first_of_each(NAMES, architecture))
def test_networks_have_the_published_names_and_shapes(name):
    built = network(name)
    assert built is not None
    if name in OURS:
        return
    state = built.state_dict()
    expected = published_names(name)
    if "fapn" in name:  # a part of ours: its weights were never released
        state = {key: value for key, value in state.items() if not key.startswith("pixel_decoder")}
        expected = without(".pixel_decoder.", expected)
    found = {key: list(value.shape) for key, value in from_m2f(DETECTRON2, state).items()}
    found = {key: shape for key, shape in found.items() if not key.endswith(UNSAVED)}
    if "per-pixel" in name:  # no list has these heads
        found, expected = without(".predictor.", found), without(".predictor.", expected)
    assert found == expected and len(found) > 150


# --- training ---------------------------------------------------------------------------------------------------------


def pattern(name: str) -> str:
    """The second number of input_proj.0.1 tells a norm from a convolution."""
    return re.sub(r"\d+", "#", name, count=1 if "input_proj." in name else 0)


@functools.cache
def golden_groups(method: str, family: str) -> dict[str, tuple[float, float]]:
    """Name with # for numbers → (multiplier, decay), from all models of golden 10 that have such a backbone."""
    methods = ("mask2former", "mpformer") if method != "maskformer" else ("maskformer",)
    found: dict[str, tuple[float, float]] = {}
    for each in methods:
        models = read_list(f"10_optimiser_{each}")["models"]
        for key, model in models.items():
            if method != "maskformer" or (family == "swin") == ("swin" in key):
                found |= {pattern(name): (multiplier, decay) for name, _, multiplier, decay in model["groups"]}
    return found


@pytest.mark.parametrize(
    "name",
    first_of_each(
        [name for name in ROWS if not re.match(r"maskformer.*-r\d+-mmseg", name)],
        lambda name: (architecture(name), load(name).train.optimizer.model_dump_json()),
    ),
)
def test_parameter_groups_are_the_published_ones(name):
    preset = load(name)
    known = golden_groups(preset.model.method, preset.model.backbone.name)
    decay, multiplier = preset.train.optimizer.weight_decay, preset.train.optimizer.backbone_multiplier
    matched = 0
    for ours, setting in settings(network(name), preset.train.optimizer).items():
        is_our_part = "fapn" in name and ours.startswith("pixel_decoder")
        expected = None if is_our_part else known.get(pattern(DETECTRON2.find(ours)[0][0]))
        matched += expected is not None
        if expected is None:  # batch norm that trains, the encoder and the baselines, which golden 10 does not have
            is_norm = re.search(r"norm\d?\.", ours)
            expected = multiplier if ours.startswith("backbone") else 1.0, 0.0 if is_norm else decay
        assert (setting.multiplier, setting.weight_decay) == expected, ours
    assert matched > 60


def test_maskformer_of_mmsegmentation_decays_everywhere():
    for size in ("r50", "r101"):
        name = f"maskformer-ade20k-{size}-mmseg"
        found = settings(network(name), load(name).train.optimizer).values()
        assert {each.weight_decay for each in found} == {1e-4} and {each.multiplier for each in found} == {0.1, 1.0}


@functools.cache
def scene(task: str) -> Sample:
    [record] = synthetic_dataset("train", 1, size=(150, 260), task=task).records
    annotation = record.read_annotation()
    return Sample(
        record.read_image(), without_crowds(annotation) if isinstance(annotation, InstanceAnnotation) else annotation
    )


@pytest.mark.parametrize("name", first_of_each(NAMES, lambda name: (load(name).task, str(load(name).train.augment))))
def test_augmentation_runs_on_a_image_of_its_kind(name):
    preset = load(name)
    steps = build_transforms(preset.train.augment)
    before = scene(preset.task).image_HW3.copy()
    made = augment(scene(preset.task), steps, np.random.default_rng(0))
    assert made.image_HW3.dtype == np.uint8 and tuple(made.annotation.size) == made.size
    assert np.array_equal(scene(preset.task).image_HW3, before)
    if crop_of(preset):
        window = tuple(int(edge) for edge in crop_of(preset).split("x"))
        assert all(edge <= most for edge, most in zip(made.size, window, strict=True))
        enters = tuple(max(pair) for pair in zip(made.size, made.canvas, strict=True))
        pads = any(step.name in ("pad", "fixed_crop") for step in preset.train.augment)
        assert enters == window or not pads

"""The library's front door: sizes, normalisation, tasks, thresholds, devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.golden_files import for_files, images_of
from helpers.parts import full_model, randomise, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import m2f_cli
from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import ResizeConfig
from m2f_cli.errors import ConfigError, M2FError
from m2f_cli.inference.preprocess import resized_shape
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build
from m2f_cli.results.types import Instances, PanopticMap, SemanticMap
from m2f_cli.runtime import devices
from m2f_cli.runtime.devices import choose_device, choose_precision
from m2f_cli.structures.categories import from_names

NAMES = ["cat", "dog", "bus", "sky", "road", "wall"]


@pytest.fixture(scope="module")
def segmenter():
    config = configuration.load("coco-panoptic-r50", ["test.resize.short_edge=64", "test.resize.max_edge=100"])
    config = config.model_copy(update={"model": tiny_config()})
    model = randomise(build(config.model, num_classes=len(NAMES)), seed=3)
    return Segmenter(model, config, from_names(NAMES, things=NAMES[:3]))


def image(height=50, width=70, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resizing_rounds_as_published():
    """detectron2's ResizeShortestEdge: docs/methods/published-behaviour.md#2-2."""
    coco = ResizeConfig(short_edge=800, max_edge=1333)
    assert resized_shape(480, 640, coco) == (800, 1067)  # 1066.67 rounds up
    assert resized_shape(427, 640, coco) == (800, 1199)
    assert resized_shape(1, 1000, coco) == (1, 1333)
    assert resized_shape(10_000, 3, coco) == (1333, 1)
    assert resized_shape(1024, 2048, ResizeConfig(short_edge=1024, max_edge=2048)) == (1024, 2048)
    assert resized_shape(3000, 4000, ResizeConfig(short_edge=2048, max_edge=2048)) == (1536, 2048)  # Mapillary
    assert resized_shape(480, 640, ResizeConfig(fixed=(384, 384))) == (384, 384)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_resize_keeps_its_limits(height, width):
    new_height, new_width = resized_shape(height, width, ResizeConfig(short_edge=800, max_edge=1333))
    assert 1 <= min(new_height, new_width) <= 800 and max(new_height, new_width) <= 1333
    assert min(new_height, new_width) == 800 or max(new_height, new_width) == 1333


def published_segmenter(file) -> Segmenter:
    """The network of a file 06 with the settings that the file was made with."""
    info = file.info
    config = configuration.load(
        "coco-panoptic-swin-t",
        [
            f"input.mean={info['pixel_mean']}",
            f"input.std={info['pixel_std']}",
            f"test.size_divisor={info['size_divisibility']}",
            f"test.object_threshold={info['object_mask_threshold']}",
            f"test.overlap_threshold={info['overlap_threshold']}",
        ],
    )
    things = info["thing_classes"]
    names = [f"class{i}" for i in range(len(things) + len(info["stuff_classes"]))]
    return Segmenter(full_model(file), config, from_names(names, things=[names[i] for i in things]))


@for_files("06")
def test_input_is_normalised_then_padded_with_zeros(golden_file):
    images = [golden_file.tensors[f"in/image.{i}"] for i in range(len(golden_file.info["image_sizes"]))]
    batch = published_segmenter(golden_file).collate(images)[images_of(golden_file.info)]
    # one subtraction and one division in fp32
    torch.testing.assert_close(batch, golden_file.tensors["mid/padded_normalised_batch"], atol=1e-6, rtol=1e-6)


@for_files("06")
def test_images_give_the_published_panoptic_maps(golden_file):
    """From pixels to a panoptic map, through the same door as everybody's images."""
    segmenter, sizes = published_segmenter(golden_file), golden_file.info["target_sizes_hw"]
    prepared = [segmenter.prepare(np.zeros((*size, 3), np.uint8)) for size in sizes]
    for i, image in enumerate(prepared):
        image.pixels_CHW = golden_file.tensors[f"in/image.{i}"]  # the fixture's own network input
    raws = segmenter.infer(prepared)
    for i in images_of(golden_file.info):
        result = segmenter.finish(raws[i], "panoptic")
        expected = golden_file.tensors[f"post/all.{i}.panoptic_seg"].numpy()
        assert (result.ids_HW != expected).sum() <= 3  # of 20,000: the logits differ in the fifth digit


def test_three_tasks_and_what_goes_in(segmenter, tmp_path):
    pixels = image()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    kinds = {"panoptic": PanopticMap, "instance": Instances, "semantic": SemanticMap}
    for task, kind in kinds.items():
        result = segmenter(path, task=task, object_threshold=0.0, score_threshold=0.0)
        assert isinstance(result, kind) and result.size == (50, 70)
    maps = [segmenter(x, task="semantic").labels_HW for x in (path, str(path), pixels, Image.fromarray(pixels))]
    assert all(np.array_equal(m, maps[0]) for m in maps)
    several = segmenter([path, image(31, 90)], task="semantic")
    assert [m.labels_HW.shape for m in several] == [(50, 70), (31, 90)]


def test_thresholds_are_obeyed(segmenter):
    everything = segmenter(image(), task="instance", score_threshold=0.0)
    assert len(everything) == sum(1 for label in everything.labels_N if label < 3) > 0, "stuff is no instance"
    assert (np.diff(everything.scores_N) <= 0).all()
    middle = float(np.median(everything.scores_N))
    some = segmenter(image(), task="instance", score_threshold=middle)
    assert len(some) == (everything.scores_N >= middle).sum() and some.scores_N.min() >= middle
    assert len(segmenter(image(), task="instance", score_threshold=0.0, top_k=5)) <= 5
    assert segmenter(image(), task="panoptic", object_threshold=1.0).segments == []


def test_a_batch_of_equal_sizes_is_its_images_alone(segmenter):
    prepared = [segmenter.prepare(image(seed=i)) for i in range(3)]
    together = segmenter.infer(prepared)
    for one, raw in zip(prepared, together, strict=True):
        [alone] = segmenter.infer([one])
        torch.testing.assert_close(raw.class_logits_QK, alone.class_logits_QK, atol=1e-4, rtol=1e-4)


def test_opencv_resampling_is_another_one(segmenter):
    test = segmenter.config.test
    other = segmenter.config.model_copy(
        update={"test": test.model_copy(update={"resize": test.resize.model_copy(update={"resampling": "opencv"})})}
    )
    pixels = image(200, 260)
    ours = Segmenter(segmenter.model, other, segmenter.categories).prepare(pixels).pixels_CHW
    pillow = segmenter.prepare(pixels).pixels_CHW
    assert ours.shape == pillow.shape and (ours.float() - pillow.float()).abs().mean() > 5


def test_wrong_tasks_devices_and_precisions(segmenter):
    with pytest.raises(ConfigError, match="does panoptic, instance, semantic segmentation, not 'depth'"):
        segmenter(image(), task="depth")
    with pytest.raises(ConfigError, match="'tpu9' cannot be used"):
        choose_device("tpu9")
    with pytest.raises(ConfigError, match="Did you mean cuda?"):
        choose_device("cdua")
    with pytest.raises(ConfigError, match="Did you mean cuda:1?"):
        choose_device("1")
    with pytest.raises(ConfigError, match="no precision named 'fp31'.*fp32"):
        Segmenter(segmenter.model, segmenter.config, segmenter.categories, precision="fp31")


def test_a_network_that_answers_nan_says_so(segmenter):
    model = build(tiny_config(), num_classes=len(NAMES))
    torch.nn.init.constant_(model.decoder.class_embed.bias, float("nan"))
    with pytest.raises(M2FError, match="NaN or infinity in fp32"):
        Segmenter(model, segmenter.config, segmenter.categories)(image())


@pytest.mark.parametrize(
    ("good", "chosen"), [(["fp32"], "fp32"), (["fp32", "fp16"], "fp16"), (["fp32", "fp16", "bf16"], "bf16")]
)
def test_auto_is_the_fastest_precision_of_the_device(good, chosen, monkeypatch):
    monkeypatch.setattr(devices, "good_precisions", lambda device: good)
    assert choose_precision("auto", torch.device("cpu")) == chosen
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_runs(segmenter, precision):
    low = Segmenter(segmenter.model, segmenter.config, segmenter.categories, precision=precision)
    assert low(image(), task="semantic").labels_HW.shape == (50, 70)


def test_public_names_are_imported_on_first_use():
    for name in m2f_cli.__all__:
        assert getattr(m2f_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        m2f_cli.lode  # noqa: B018

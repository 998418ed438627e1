"""The fixed square input and the even windows of EoMT and PMT, against the published numbers (fixture v04)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.golden_files import params, read
from helpers.small_segmenter import random_image, small_segmenter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from m2f_cli.benchmark.case import Case, network_size
from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import ResizeConfig, SlideConfig
from m2f_cli.errors import ConfigError
from m2f_cli.export import base as exporting
from m2f_cli.export.base import ExportOptions
from m2f_cli.export.graph import dynamic_shapes, example
from m2f_cli.inference.engines.base import Description, EngineSegmenter
from m2f_cli.inference.sliding_window import even_starts, sliding
from m2f_cli.inference.tiling.tiled import tiled
from m2f_cli.structures.categories import from_names

SQUARE = ("test.resize={fit: 64, rounding: half_even}", "test.pad_value=0")
WINDOWS = (
    "test.resize={short_edge: 64, rounding: half_even}",
    "test.slide={crop: [64, 64], even: true}",
    "test.pad_value=0",
)
NAMES = [f"class{i}" for i in range(6)]


class Answers:
    """Engine that answers with given logits, one batch after the other, and keeps what it was given."""

    device = torch.device("cpu")

    def __init__(self, config, class_logits, mask_logits, **options):
        categories = from_names(NAMES, things=NAMES[:4])
        self.description = Description(config, categories, "published", size=(64, 64), **options)
        self.answers, self.seen = list(zip(class_logits, mask_logits, strict=True)), []

    def __call__(self, images_BCHW):
        classes, masks = self.answers[len(self.seen)]
        self.seen.append(images_BCHW)
        return {"class_logits": classes[None], "mask_logits": masks[None]}


@pytest.fixture(scope="module", params=params("v04"))
def published(request):
    return read(*request.param)


def image_of(published, i):
    return published.tensors[f"in/image.{i}"].permute(1, 2, 0).numpy()


def square(published, task, **options):
    config = configuration.load("coco-panoptic-r50", [*SQUARE, f"test.tasks=[{task}]", f"task={task}", "test.top_k=8"])
    return Answers(config, published.tensors["in/class_logits"], published.tensors["in/mask_logits"], **options)


def test_images_are_padded_with_black_to_the_square(published):
    engine = square(published, "panoptic")
    segmenter = EngineSegmenter(engine)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (segmenter.config.input.mean, segmenter.config.input.std)
    )
    for i in range(2):
        [raw] = segmenter.infer([segmenter.prepare(image_of(published, i))])
        assert list(raw.masks.valid) == published.info["decisions"]["padded_resized"][i]
        expected = (published.tensors["mid/padded_images"][i].float() - mean) / std
        assert torch.equal(engine.seen[i][0], expected)  # the same operations on the same bytes


def test_masks_are_rendered_as_published(published):
    segmenter = EngineSegmenter(square(published, "panoptic"))
    for i in range(2):
        image = image_of(published, i)
        [raw] = segmenter.infer([segmenter.prepare(image)])
        masks = raw.masks.at_output(torch.arange(4))(0, image.shape[0])
        # Two resizes in one product: a few roundings of fp32 at logits of about 10.
        torch.testing.assert_close(masks, published.tensors[f"mid/mask_logits_full.{i}"], atol=1e-5, rtol=0)


def test_panoptic_maps_are_the_published_ones(published):
    segmenter = EngineSegmenter(square(published, "panoptic"))
    for i in range(2):
        result = segmenter(image_of(published, i))
        classes = np.full(result.ids_HW.max() + 1, len(NAMES))
        classes[[segment.id for segment in result.segments]] = [segment.label for segment in result.segments]
        expected_HW2 = published.tensors[f"panoptic/class_and_id.{i}"].numpy()
        assert np.array_equal(result.ids_HW - 1, expected_HW2[..., 1])
        assert np.array_equal(classes[result.ids_HW], expected_HW2[..., 0])


def test_instances_are_the_published_ones(published):
    segmenter = EngineSegmenter(square(published, "instance"))
    for i in range(2):
        result = segmenter(image_of(published, i), score_threshold=0)
        scores = published.tensors[f"instance/scores.{i}"].numpy()
        order = np.argsort(-scores)
        # Sums of sigmoids over a few thousand pixels, in another order.
        np.testing.assert_allclose(result.scores_N, scores[order], atol=2e-6)
        assert np.array_equal(result.labels_N, published.tensors[f"instance/labels.{i}"].numpy()[order])
        assert np.array_equal(result.masks_NHW(), published.tensors[f"instance/masks.{i}"].numpy()[order])


def test_semantic_maps_come_from_even_windows_as_published(published):
    config = configuration.load("ade20k-r50", [*WINDOWS, "test.tasks=[semantic]"])
    tensors = published.tensors
    engine = Answers(config, tensors["semantic/class_logits"], tensors["semantic/mask_logits"], normalised=True)
    segmenter = sliding(EngineSegmenter(engine))
    for i in range(2):
        image = image_of(published, i)
        [raw] = segmenter.infer([segmenter.prepare(image)])
        assert list(raw.valid) == published.info["decisions"]["semantic_resized"][i]
        starts = [max(top, left) for top, left, _ in raw.windows]
        assert starts == [start for n, start, _ in published.info["decisions"]["semantic_origins"] if n == i]
        scores = segmenter.semantic_scores(raw)(0, image.shape[0])
        # Eight times the fp32 noise of the original, 4.8e-7.
        torch.testing.assert_close(scores, tensors[f"semantic/scores.{i}"], atol=4e-6, rtol=0)
        assert np.array_equal(segmenter.finish(raw).labels_HW, tensors[f"semantic/labels.{i}"].numpy())
    crops = torch.cat(engine.seen)
    # Normalised and back again: two roundings at 255.
    torch.testing.assert_close(crops, tensors["semantic/crops"].float(), atol=1e-4, rtol=0)


@given(st.integers(1, 3000), st.integers(1, 700))
def test_even_windows_cover_an_axis_with_as_few_as_possible(length, crop):
    starts = even_starts(length, crop)
    assert len(starts) == -(-length // crop) and starts[0] == 0
    assert starts[-1] == max(length - crop, 0)
    steps = np.diff(starts)
    assert (steps <= crop).all() and (not len(steps) or steps.max() - steps.min() <= 1)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((201, 500), {"fit": 640}, (257, 640)),
        ((500, 201), {"fit": 640}, (640, 257)),
        ((640, 640), {"fit": 640}, (640, 640)),
        ((9, 3000), {"fit": 64}, (1, 64)),
        ((1024, 1025), {"short_edge": 512}, (512, 513)),
        ((1024, 1025), {"short_edge": 512, "rounding": "half_even"}, (512, 512)),
        ((263, 267), {"short_edge": 512, "rounding": "half_even"}, (512, 520)),
    ],
)
def test_the_size_at_test_time(size, resize, expected):
    segmenter = small_segmenter("coco-panoptic-r50", f"test.resize={resize}")
    assert segmenter.input_shape(*size) == expected


def test_the_network_gets_the_square_whatever_the_image_and_the_batch():
    segmenter = small_segmenter("coco-panoptic-r50", *SQUARE)
    batch = [segmenter.prepare(random_image(*size)) for size in ((50, 70), (90, 31), (64, 64))]
    assert segmenter.collate([each.pixels_CHW for each in batch]).shape == (3, 3, 64, 64)
    assert network_size(Case(image=(50, 70)), segmenter.config) == (64, 64)
    one, many = segmenter.infer(batch[:1])[0], segmenter.infer(batch)[0]
    torch.testing.assert_close(one.class_logits_QK, many.class_logits_QK, atol=1e-4, rtol=1e-4)


def test_black_padding_and_mean_padding_are_different_inputs():
    black, mean = (small_segmenter("coco-panoptic-r50", SQUARE[0], *more) for more in (SQUARE[1:], ()))
    [image] = [black.prepare(random_image(50, 70)).pixels_CHW]
    difference = black.collate([image]) - mean.collate([image])
    config = black.config.input
    assert difference[:, :, : image.shape[1]].abs().max() == 0
    expected = -torch.tensor(config.mean) / torch.tensor(config.std)
    torch.testing.assert_close(difference[0, :, -1, -1], expected)


def test_tiles_of_a_large_image_are_squares_for_the_network():
    segmenter = small_segmenter("coco-panoptic-r50", *SQUARE)
    result = tiled(segmenter, 60)(random_image(90, 130), "panoptic")
    assert result.size == (90, 130)


@pytest.mark.parametrize("settings", [SQUARE, WINDOWS], ids=["square", "windows"])
def test_a_file_is_exported_for_the_one_size_of_all_images(settings):
    segmenter = small_segmenter("ade20k-r50", "test.resize={}", *settings)
    options = ExportOptions()
    assert exporting.description_of(segmenter, options).size == (64, 64)
    assert example(segmenter, options).shape == (1, 3, 64, 64) and dynamic_shapes(segmenter, options) is None
    assert exporting.description_of(segmenter, ExportOptions(size=(96, 96))).size == (96, 96)
    assert exporting.description_of(small_segmenter(), options).size is None


def test_the_runner_beside_an_onnx_file_makes_the_same_input():
    pytest.importorskip("onnxruntime")
    from m2f_cli.export import runner_template as runner

    segmenter = small_segmenter("coco-panoptic-r50", *SQUARE)
    for normalised in (False, True):
        description = exporting.description_of(segmenter, ExportOptions(normalise=normalised))
        about = {
            "config": description.config.model_dump(mode="json", exclude_none=True),
            "size": description.size,
            "multiple": description.multiple,
            "batch": 1,
            "normalised": normalised,
        }
        for size in ((50, 75), (90, 41)):
            image = random_image(*size)
            valid, padded = runner.input_size(*size, about)
            assert (valid, padded) == (segmenter.input_shape(*size), (64, 64))
            made = runner.network_input(Image.fromarray(image), valid, padded, about)
            expected = segmenter.collate([segmenter.prepare(image).pixels_CHW])
            if normalised:
                mean, std = (
                    torch.tensor(each)[:, None, None]
                    for each in (description.config.input.mean, description.config.input.std)
                )
                expected = expected * std + mean
            np.testing.assert_allclose(made, expected.numpy(), atol=1e-4)


def test_a_runner_has_no_windows():
    pytest.importorskip("onnx")
    from m2f_cli.export.onnx import OnnxExporter

    segmenter = small_segmenter("ade20k-r50", "test.resize={}", *WINDOWS)
    with pytest.raises(ConfigError, match="tested in windows, which the program of --with-runner does not have"):
        OnnxExporter().check(segmenter, ExportOptions(runner=True))


@pytest.mark.parametrize("settings", [{"fit": 64, "short_edge": 64}, {"fit": 64, "fixed": (64, 64)}, {"fit": 0}])
def test_one_rule_gives_the_size(settings):
    with pytest.raises(ValidationError):
        ResizeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (64, 64)}, "give either stride, or even: true"),
        ({"crop": (64, 64), "stride": (32, 32), "even": True}, "give either stride, or even: true"),
        ({"crop": (0, 64), "even": True}, "at least one pixel"),
    ],
)
def test_windows_come_in_steps_or_evenly(settings, message):
    with pytest.raises(ValidationError, match=message):
        SlideConfig(**settings)
